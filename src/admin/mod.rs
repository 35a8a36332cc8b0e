//! The admin listener: health, metrics, the admin API and the console. Each handler is described by its `utoipa::path`;
//! together they make the OpenAPI document. Handlers translate HTTP only; the work is `crate::operator`'s.

mod account;
mod accounts;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod audit;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod bindings;
mod configuration;
mod console;
mod cookie;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod dashboard;
mod events;
mod explain;
mod export;
mod extract;
mod health;
mod limits;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod logs;
mod oidc;
mod openapi;
mod paging;
mod problem;
mod providers;
pub mod server;
mod settings;
mod sign_in;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod streams;
mod time;
#[expect(unused_qualifications, reason = "utoipa's macro writes them")]
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef};
use axum::middleware;
use keylatch_filters::contract::KeyHasher;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use extract::ACTOR;
pub use openapi::document;

use crate::bindings::Store;
use crate::cluster::replica::Replica;
use crate::http_proxy::ProxyState;
use crate::operator::access::Caller;
use crate::operator::bindings::Bindings;
use crate::operator::oidc::Oidc;
use crate::operator::replica_rpc::ReplicaRpc;
use crate::operator::sign_in::Authenticator;
use crate::reload::Reloader;
use crate::telemetry::sampler::Sampler;
use crate::usage::Accounts;

/// Maximum size of a request body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Maximum size of a configuration to check.
const CONFIG_BYTES_MAX: usize = 5 << 20;

/// The dependencies of the handlers.
pub struct Api {
    /// Snapshot and metrics.
    pub shared: Arc<ProxyState>,
    /// The store.
    pub store: Arc<Store>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
    /// Authenticates callers.
    pub authenticator: Authenticator,
    /// Sign-in through OpenID Connect providers.
    pub oidc: Oidc,
    /// Queries to all replicas.
    pub rpc: Arc<ReplicaRpc>,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// Reports this replica's counts.
    pub sampler: Sampler,
    /// The configuration file.
    pub path: PathBuf,
    /// This replica.
    pub replica: Arc<Replica>,
    /// What requests used.
    pub usage: Arc<Accounts>,
}

/// The state of the router.
#[derive(Clone)]
pub struct ApiState(pub Arc<Api>);

impl FromRef<ApiState> for Arc<Api> {
    fn from_ref(state: &ApiState) -> Self {
        Arc::clone(&state.0)
    }
}

impl Api {
    /// Operations on bindings on behalf of this caller.
    fn bindings<'a>(&'a self, caller: &'a Caller) -> Bindings<'a> {
        Bindings { store: &self.store, hasher: &self.hasher, actor: &caller.actor }
    }
}

/// All operations of the API.
fn calls() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(sign_in::sign_in))
        .routes(routes!(sign_in::sign_out))
        .routes(routes!(sign_in::renew))
        .routes(routes!(oidc::sign_in_providers))
        .routes(routes!(oidc::begin))
        .routes(routes!(oidc::finish))
        .routes(routes!(account::me))
        .routes(routes!(account::choose_password))
        .routes(routes!(account::sessions))
        .routes(routes!(account::end_session))
        .routes(routes!(account::tokens, account::make_token))
        .routes(routes!(account::remove_token))
        .routes(routes!(accounts::list, accounts::make))
        .routes(routes!(accounts::get, accounts::change, accounts::remove))
        .routes(routes!(accounts::tokens))
        .routes(routes!(accounts::remove_token))
        .routes(routes!(providers::list))
        .routes(routes!(providers::get, providers::put, providers::remove))
        .routes(routes!(providers::check))
        .routes(routes!(dashboard::get))
        .routes(routes!(events::follow))
        .routes(routes!(streams::list))
        .routes(routes!(streams::end))
        .routes(routes!(limits::list))
        .routes(routes!(limits::reset))
        .routes(routes!(usage::report))
        .routes(routes!(usage::export))
        .routes(routes!(usage::latency))
        .routes(routes!(usage::requests::list))
        .routes(routes!(usage::requests::export))
        .routes(routes!(bindings::list))
        .routes(routes!(bindings::export))
        .routes(routes!(bindings::look_up))
        .routes(routes!(bindings::get, bindings::change::change))
        .routes(routes!(bindings::timeline))
        .routes(routes!(bindings::change::unbind))
        .routes(routes!(bindings::change::bind))
        .routes(routes!(bindings::change::allow))
        .routes(routes!(bindings::change::ban))
        .routes(routes!(bindings::change::unban))
        .routes(routes!(bindings::bulk::bulk))
        .routes(routes!(logs::list))
        .routes(routes!(logs::groups))
        .routes(routes!(logs::export))
        .routes(routes!(settings::list, settings::change))
        .routes(routes!(settings::revert))
        .routes(routes!(settings::test_alerts))
        .routes(routes!(audit::list))
        .routes(routes!(audit::export))
        .routes(routes!(configuration::get))
        .routes(routes!(configuration::reload))
        .routes(routes!(explain::explain))
        .merge(OpenApiRouter::new().routes(routes!(configuration::check)).layer(DefaultBodyLimit::max(CONFIG_BYTES_MAX)))
}

/// The routes of the listener.
pub fn router(api: Arc<Api>) -> Router {
    let (calls, document) = calls().split_for_parts();
    let document = Arc::new(document.to_json().unwrap_or_default());
    let api_calls = calls
        .route("/admin/api/openapi.json", axum::routing::get(move || openapi::serve(Arc::clone(&document))))
        .fallback(problem::no_such_call)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(ApiState(Arc::clone(&api)), extract::own_origin));
    health::routes().merge(console::routes()).merge(api_calls).with_state(ApiState(api))
}
