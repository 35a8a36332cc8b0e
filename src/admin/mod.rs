//! The admin listener: health, metrics, and the API by which operators and the console do their work. Handlers say in
//! HTTP what `crate::operator` does; each is described by its `utoipa::path`, and all of them together are the OpenAPI
//! document.

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
use crate::operator::replicas::Everywhere;
use crate::operator::sign_in::Door;
use crate::reload::Reloader;
use crate::telemetry::sampler::Sampler;

/// The largest body of a request.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The largest configuration that is looked at.
const CONFIG_BYTES_MAX: usize = 5 << 20;

/// What the handlers work with.
pub struct Api {
    /// Snapshot and metrics.
    pub shared: Arc<ProxyState>,
    /// The store.
    pub store: Arc<Store>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
    /// Lets people in.
    pub door: Door,
    /// Knows the providers through which people come in.
    pub oidc: Oidc,
    /// What only the replica knows where it happens.
    pub everywhere: Arc<Everywhere>,
    /// Reloads the configuration.
    pub reloader: Arc<Reloader>,
    /// Tells what this replica counts.
    pub sampler: Sampler,
    /// The configuration file.
    pub path: PathBuf,
    /// This process among its like.
    pub replica: Arc<Replica>,
}

/// How handlers hold it.
#[derive(Clone)]
pub struct Known(pub Arc<Api>);

impl FromRef<Known> for Arc<Api> {
    fn from_ref(known: &Known) -> Self {
        Arc::clone(&known.0)
    }
}

impl Api {
    /// What this caller does with bindings.
    fn bindings<'a>(&'a self, caller: &'a Caller) -> Bindings<'a> {
        Bindings { store: &self.store, hasher: &self.hasher, actor: &caller.actor }
    }
}

/// All calls of the API.
fn calls() -> OpenApiRouter<Known> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(sign_in::sign_in))
        .routes(routes!(sign_in::sign_out))
        .routes(routes!(sign_in::renew))
        .routes(routes!(oidc::doors))
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

/// Everything the listener serves.
pub fn router(api: Arc<Api>) -> Router {
    let (calls, document) = calls().split_for_parts();
    let document = Arc::new(document.to_json().unwrap_or_default());
    let api_calls = calls
        .route("/admin/api/openapi.json", axum::routing::get(move || openapi::serve(Arc::clone(&document))))
        .fallback(problem::no_such_call)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Known(Arc::clone(&api)), extract::own_origin));
    health::routes().merge(console::routes()).merge(api_calls).with_state(Known(api))
}
