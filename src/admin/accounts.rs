//! Handlers for accounts and their API tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::account::{ApiToken, shown as shown_token};
use super::extract::{ACCOUNTS, Body, IfMatch, May, PathParam, PathParams, etag};
use super::paging::ListPage;
use super::problem::{Answer, Problem, Problems};
use super::time::rfc3339;
use crate::operator::access::Role;
use crate::operator::accounts;
use crate::sql::accounts::{Account as Stored, WriteOutcome};

/// An account.
#[derive(Serialize, ToSchema)]
pub struct Account {
    /// The name.
    name: String,
    /// The role.
    role: Role,
    /// Whether sign-in is disabled.
    disabled: bool,
    /// Whether the password must be changed at the next sign-in.
    must_change_password: bool,
    /// Creation time.
    #[schema(format = DateTime)]
    created_at: String,
    /// Time of the last sign-in.
    #[schema(format = DateTime)]
    signed_in_at: Option<String>,
    /// The OpenID Connect provider of the account; `null` if it has a password.
    provider: Option<String>,
    /// The version, for `If-Match`.
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

/// A response with one account.
type One = ([(HeaderName, String); 1], Json<Account>);

fn one(stored: &Stored) -> One {
    (etag(stored.version), Json(shown(stored)))
}

/// List accounts
#[utoipa::path(get, path = "/admin/api/accounts", tag = "accounts", security(("bearer" = ["accounts"])), responses((status = 200, body = ListPage<Account>), Problems))]
pub async fn list(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>) -> Answer<Json<ListPage<Account>>> {
    let accounts = api.store.admin_store().accounts().await?;
    Ok(Json(ListPage::all(accounts.iter().map(shown).collect())))
}

/// An account to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// 1 to 64 letters, digits and `-_.@`.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    /// The role.
    role: Role,
    /// A temporary password, which must be changed at the first sign-in.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: String,
}

/// Create an account
#[utoipa::path(post, path = "/admin/api/accounts", tag = "accounts", security(("bearer" = ["accounts"])), request_body = NewAccount,
    responses((status = 201, body = Account), Problems))]
pub async fn make(State(api): State<Arc<Api>>, May(caller): May<ACCOUNTS>, Body(input): Body<NewAccount>) -> Answer<(StatusCode, One)> {
    let made = accounts::make(&api.store, api.authenticator.passwords(), &input.name, input.role, &input.password, &caller.actor).await?;
    Ok((StatusCode::CREATED, one(&made)))
}

/// Get an account
#[utoipa::path(get, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The account's name.")),
    responses((status = 200, body = Account), Problems))]
pub async fn get(State(api): State<Arc<Api>>, May(_caller): May<ACCOUNTS>, PathParam(name): PathParam) -> Answer<One> {
    Ok(one(&accounts::get(&api.store, &name).await?))
}

/// A change of an account; fields that are absent keep their values.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChange {
    /// The role.
    role: Option<Role>,
    /// Whether sign-in is disabled.
    disabled: Option<bool>,
    /// A temporary password, which must be changed at the next sign-in.
    #[schema(min_length = 12, max_length = 1024, format = Password)]
    password: Option<String>,
    /// Clear failed attempts and the lock.
    #[serde(default)]
    unlock: bool,
}

/// Change an account
///
/// Ends all sessions of the account.
#[utoipa::path(patch, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])), request_body = AccountChange,
    params(("name" = String, Path, description = "The account's name."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")),
    responses((status = 200, body = Account), Problems))]
pub async fn change(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
    Body(input): Body<AccountChange>,
) -> Answer<One> {
    let before = accounts::get(&api.store, &name).await?;
    stale(expects, before.version)?;
    let change = accounts::Change { role: input.role, disabled: input.disabled, password: input.password };
    let nothing = change.role.is_none() && change.disabled.is_none() && change.password.is_none();
    let after = if nothing {
        before
    } else {
        let changed = accounts::change(&api.store, api.authenticator.passwords(), &before.name, &change, expects, &caller.actor).await;
        changed.map_err(|fault| precise(fault.into(), expects))?
    };
    if input.unlock {
        api.store.admin_store().unlock(&after.name, &caller.actor).await?;
    }
    Ok(one(&after))
}

/// List the API tokens of an account
#[utoipa::path(get, path = "/admin/api/accounts/{name}/tokens", tag = "accounts", security(("bearer" = ["accounts"])), params(("name" = String, Path, description = "The account's name.")),
    responses((status = 200, body = ListPage<ApiToken>), Problems))]
pub async fn tokens(
    State(api): State<Arc<Api>>,
    May(_caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
) -> Answer<Json<ListPage<ApiToken>>> {
    let account = accounts::get(&api.store, &name).await?;
    let tokens = api.store.admin_store().tokens(Some(&account.name)).await?;
    Ok(Json(ListPage::all(tokens.into_iter().map(shown_token).collect())))
}

/// Remove an API token of an account
#[utoipa::path(delete, path = "/admin/api/accounts/{name}/tokens/{id}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The account's name."), ("id" = String, Path, description = "The token's id.")),
    responses((status = 204, description = "Removed."), Problems))]
pub async fn remove_token(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParams((name, id)): PathParams,
) -> Answer<StatusCode> {
    let account = accounts::get(&api.store, &name).await?;
    match api.store.admin_store().remove_token(&account.name, &id, &caller.actor).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::missing(format!("`{}` has no token with this id", account.name))),
    }
}

/// Remove an account
///
/// Its sessions and API tokens are removed, too.
#[utoipa::path(delete, path = "/admin/api/accounts/{name}", tag = "accounts", security(("bearer" = ["accounts"])),
    params(("name" = String, Path, description = "The account's name."), ("If-Match" = Option<String>, Header, description = "The version that was read, from `ETag`.")),
    responses((status = 204, description = "Removed."), Problems))]
pub async fn remove(
    State(api): State<Arc<Api>>,
    May(caller): May<ACCOUNTS>,
    PathParam(name): PathParam,
    IfMatch(expects): IfMatch,
) -> Answer<StatusCode> {
    let name = name.to_ascii_lowercase();
    match api.store.admin_store().remove_account(&name, expects, &caller.actor).await? {
        WriteOutcome::Newer => {
            Err(Problem::stale(format!("the account `{name}` was changed meanwhile; load the current version and try again")))
        }
        made => Ok(accounts::change_result(made, &name).map(|()| StatusCode::NO_CONTENT)?),
    }
}

fn stale(expects: Option<i64>, version: i64) -> Answer<()> {
    match expects {
        Some(expects) if expects != version => Err(Problem::stale("it was changed meanwhile; load the current version and try again")),
        _ => Ok(()),
    }
}

/// A version conflict becomes a failed precondition if the request had `If-Match`.
pub fn precise(problem: Problem, expects: Option<i64>) -> Problem {
    if expects.is_some() && problem.is_conflict_of_versions() {
        Problem::stale("it was changed meanwhile; load the current version and try again")
    } else {
        problem
    }
}
