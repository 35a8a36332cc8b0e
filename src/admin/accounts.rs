//! Who may sign in.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::account::{ScriptToken, shown as shown_token};
use super::extract::{ACCOUNTS, Body, IfMatch, May, PathParam, PathParams, etag};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use super::time::rfc3339;
use crate::operator::access::Role;
use crate::operator::accounts;
use crate::sql::accounts::{Account as Stored, Made};

/// Somebody who may sign in.
#[derive(Serialize, ToSchema)]
pub struct Account {
    /// His name.
    name: String,
    /// What he is.
    role: Role,
    /// He may not sign in.
    disabled: bool,
    /// He must choose a password of his own first.
    must_change_password: bool,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// When he signed in last.
    #[schema(format = DateTime)]
    signed_in_at: Option<String>,
    /// The provider through which he signs in; `null`: he has a password.
    provider: Option<String>,
    /// For `If-Match`.
    version: i64,
}

fn shown(stored: &Stored) -> Account {
    Account {
        name: stored.name.clone(),
        role: Role::stored(&stored.role),
        disabled: stored.disabled,
        must_change_password: stored.must_change,
        created_at: rfc3339(stored.created_ms),
        signed_in_at: stored.signed_in_ms.map(rfc3339),
        provider: stored.elsewhere.as_ref().map(|elsewhere| elsewhere.provider.clone()),
        version: stored.version,
    }
}

/// What an answer about one account has.
type One = ([(HeaderName, String); 1], Json<Account>);

fn one(stored: &Stored) -> One {
    (etag(stored.version), Json(shown(stored)))
}

/// Who may sign in?
#[utoipa::path(get, path = "/admin/api/accounts", tag = "accounts", security(("bearer" = ["accounts"])), responses((status = 200, body = ListPage<Account>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>) -> Answer<Json<ListPage<Account>>> {
    let accounts = api.store.desk().accounts().await?;
    Ok(Json(ListPage::all(accounts.iter().map(shown).collect())))
}

/// An account that is to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// 1 to 64 letters, digits and `-_.@`.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    /// What he is.
    role: Role,
    /// His first password, which he must change.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: String,
}

/// Make an account
#[utoipa::path(post, path = "/admin/api/accounts", tag = "accounts", security(("bearer" = ["accounts"])), request_body = NewAccount,
    responses((status = 201, body = Account), Problems))]
pub async fn make(State(api): State<Arc<Api>>, May(caller): May<ACCOUNTS>, Body(asked): Body<NewAccount>) -> Answer<(StatusCode, One)> {
    let made = accounts::make(&api.store, api.authenticator.passwords(), &asked.name, asked.role, &asked.password, &caller.actor).await?;
    Ok((StatusCode::CREATED, one(&made)))
}

/// Look at an account
#[utoipa::path(get, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The account's name.")),
    responses((status = 200, body = Account), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<One> {
    Ok(one(&accounts::get(&api.store, &name).await?))
}

/// What is to change of an account; what is not given stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChange {
    /// What he is.
    role: Option<Role>,
    /// Whether he may not sign in.
    disabled: Option<bool>,
    /// A password, which he must change.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: Option<String>,
    /// Forget the wrong passwords that have locked it.
    #[serde(default)]
    unlock: bool,
}

/// Change an account
///
/// Ends all its sign-ins.
#[utoipa::path(patch, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])), request_body = AccountChange,
    params(("name" = String, Path, description = "The account's name."), ("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at.")),
    responses((status = 200, body = Account), Problems))]
pub async fn change(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
    Body(asked): Body<AccountChange>,
) -> Answer<One> {
    let before = accounts::get(&api.store, &name).await?;
    stale(expects, before.version)?;
    let change = accounts::Change { role: asked.role, disabled: asked.disabled, password: asked.password };
    let nothing = change.role.is_none() && change.disabled.is_none() && change.password.is_none();
    let after = if nothing {
        before
    } else {
        let changed = accounts::change(&api.store, api.authenticator.passwords(), &before.name, &change, expects, &caller.actor).await;
        changed.map_err(|fault| precise(fault.into(), expects))?
    };
    if asked.unlock {
        api.store.desk().unlock(&after.name, &caller.actor).await?;
    }
    Ok(one(&after))
}

/// See the tokens of an account's scripts
#[utoipa::path(get, path = "/admin/api/accounts/{name}/tokens", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The account's name.")),
    responses((status = 200, body = ListPage<ScriptToken>), Problems))]
pub async fn tokens(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<Json<ListPage<ScriptToken>>> {
    let account = accounts::get(&api.store, &name).await?;
    let tokens = api.store.desk().tokens(Some(&account.name)).await?;
    Ok(Json(ListPage::all(tokens.into_iter().map(shown_token).collect())))
}

/// Remove the token of an account's script
#[utoipa::path(delete, path = "/admin/api/accounts/{name}/tokens/{id}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The account's name."), ("id" = String, Path, description = "The token's id.")),
    responses((status = 204, description = "It is good no more."), Problems))]
pub async fn remove_token(State(api): State<Arc<Api>>, May(caller): May<ACCOUNTS>, PathParams((name, id)): PathParams) -> Answer<StatusCode> {
    let account = accounts::get(&api.store, &name).await?;
    match api.store.desk().remove_token(&account.name, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing(format!("`{}` has no such token", account.name))),
    }
}

/// Remove an account
///
/// Its sign-ins and tokens go with it.
#[utoipa::path(delete, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The account's name."), ("If-Match" = Option<String>, Header, description = "The `ETag` of what was looked at.")),
    responses((status = 204, description = "It is gone."), Problems))]
pub async fn remove(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
) -> Answer<StatusCode> {
    let name = name.to_ascii_lowercase();
    match api.store.desk().remove_account(&name, expects, &caller.actor).await? {
        Made::Newer => Err(Problem::stale(format!("the account `{name}` was changed meanwhile; look at it again"))),
        made => Ok(accounts::change_result(made, &name).map(|()| StatusCode::NO_CONTENT)?),
    }
}

fn stale(expects: Option<i64>, version: i64) -> Answer<()> {
    match expects {
        Some(expects) if expects != version => Err(Problem::stale("it was changed meanwhile; look at it again")),
        _ => Ok(()),
    }
}

/// A conflict of versions that somebody has named is a failed precondition.
pub fn precise(problem: Problem, expects: Option<i64>) -> Problem {
    if expects.is_some() && problem.is_conflict_of_versions() {
        Problem::stale("it was changed meanwhile; look at it again")
    } else {
        problem
    }
}
