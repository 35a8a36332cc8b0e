//! The command line: the command tree with its help texts, and one file for each command.
//!
//! Commands parse arguments and print results. What they do is in `operator`, `bindings`, `doctor` and `process`.

mod admin;
mod admin_client;
mod alerts;
mod api;
mod audit;
mod backup;
mod bindings;
mod check;
mod cloudflare;
mod completions;
mod demo_upstream;
mod doctor;
mod explain;
mod filters;
mod firewall;
mod health;
mod intercepts;
mod limits;
mod man;
mod migrate;
mod reference;
mod reload;
mod restore;
mod schema;
mod secret;
mod settings;
mod status;
mod streams;
mod terminal;
mod token;
mod upgrade;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::process;
use crate::sql::audit::Actor;
use crate::telemetry::logs;

/// A programmable edge proxy for model APIs: client addresses, key bindings, rate limits, and streams that stay open.
#[derive(Parser)]
#[command(
    name = "keylatch",
    version,
    after_help = "Start with `keylatch run --config config/quickstart.yaml`. `keylatch filters` lists the filters of a chain."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file. Default: keylatch.yaml in the working directory, else /etc/keylatch/keylatch.yaml
    #[arg(short, long, global = true, value_name = "FILE", env = "KEYLATCH_CONFIG", default_value_os_t = usual_config(), hide_default_value = true)]
    config: PathBuf,
}

/// The configuration file without `--config`: in the working directory, else the one of the package.
fn usual_config() -> PathBuf {
    const WORKING_DIRECTORY: &str = "keylatch.yaml";
    const PACKAGE: &str = "/etc/keylatch/keylatch.yaml";
    let exists = |path: &&str| std::path::Path::new(path).exists();
    [WORKING_DIRECTORY, PACKAGE].iter().find(|path| exists(path)).copied().unwrap_or(WORKING_DIRECTORY).into()
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The configuration file; overrides `--config`
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// The step of a handover; set by the process that starts this one
    #[arg(long, hide = true)]
    successor: Option<Step>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    Launch,
    Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy. SIGHUP reloads the configuration, SIGTERM drains open requests and stops, SIGINT stops at once
    Run(Run),
    /// Check a configuration and print every error. Exit code 0 if it is valid
    Check(Check),
    /// Reload the configuration of the running process and wait for the outcome
    Reload(ConfigFile),
    /// Replace the running process by one of the installed program. The old process drains its open connections
    Upgrade(ConfigFile),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Explain how the running process would handle a request: its client address, its route, and the decision of each filter, rule,
    /// binding and limit. Sends, counts and binds nothing
    Explain(explain::Explain),
    /// Write the reference pages of the manual as Markdown
    Reference(reference::Reference),
    /// Print the completion script of a shell
    Completions(completions::Completions),
    /// Print the manual page keylatch(1) for `man -l`, or write the pages of all commands
    Man(man::Man),
    /// List the filters, or print the manual of one
    Filters {
        /// The name of the filter
        name: Option<String>,
    },
    /// List and change bindings in the store of a configuration
    Bindings(bindings::Bindings),
    /// Show the state and recent traffic of all replicas, from the running process
    Status(status::Status),
    /// List requests that were refused because of a binding, from the running process
    Intercepts(intercepts::Intercepts),
    /// List and end open streams of all replicas, through the running process
    Streams(streams::Streams),
    /// List subjects near or over a limit on any replica, and reset their usage, through the running process
    Limits(limits::Limits),
    /// Report the tokens and the cost of requests by key, model, route, …, from the running process
    Usage(usage::Usage),
    /// Show the audit log of changes from the store of a configuration
    Audit(audit::Audit),
    /// List and change runtime settings in the store of a configuration
    Settings(settings::Settings),
    /// Manage the accounts and sign-in providers of the admin API. Also restores access for a locked-out operator
    Admin(admin::Admin),
    /// Call the admin API of the running process and print the JSON response
    Api(api::Api),
    /// Report the health of the running process and its problems. Exit codes: 0 ok; 1 not running or not ready; 3 degraded, an upstream
    /// or the store is unavailable; 4 down, no upstream has a healthy server
    Health(health::Health),
    /// Print or refresh Cloudflare's address ranges
    Cloudflare(cloudflare::Cloudflare),
    /// Print firewall rules that admit only Cloudflare, SSH and WireGuard. Applies nothing
    Firewall(firewall::Firewall),
    /// Back up the SQLite database, its secret and the configuration while the process runs. For PostgreSQL, print the steps
    Backup(backup::Backup),
    /// Restore a backup of the SQLite database. For PostgreSQL, print the steps
    Restore(restore::Restore),
    /// Check the configuration, this machine and the servers it uses for production problems. Exit code 0 if there is none
    Doctor(doctor::Doctor),
    /// Test the delivery of alerts
    Alerts(alerts::Alerts),
    /// Create tokens for `bearer.accept.static`
    Token(token::Token),
    /// Rotate the secret under which keys are hashed
    Secret(secret::Secret),
    /// Update the schema of the store, and exit
    Migrate(ConfigFile),
    /// Serve a demo model API for tests: OpenAI chat completions and Anthropic messages, plain and streamed
    DemoUpstream(demo_upstream::DemoUpstream),
}

/// Runs a command. An error is printed to standard error, and the exit code is 1.
pub fn main(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Run(Run { file, successor }) => match successor {
            None => process::run(&file.config),
            Some(Step::Launch) => process::launch(&file.config),
            Some(Step::Serve) => process::succeed(&file.config),
        },
        Command::Upgrade(file) => upgrade::upgrade(&file.config),
        Command::Check(Check { file, path }) => check::check(path.as_ref().unwrap_or(&file.config)),
        Command::Reload(file) => reload::reload(&file.config),
        Command::Schema => schema::schema(),
        Command::Explain(explain) => explain::explain(&explain),
        Command::Reference(reference) => reference::reference(&reference),
        Command::Completions(completions) => completions::completions(&completions),
        Command::Man(man) => man::man(&man),
        Command::Filters { name } => filters::filters(name.as_deref()),
        Command::Bindings(bindings) => bindings::bindings(&bindings),
        Command::Status(status) => status::status(&status),
        Command::Intercepts(intercepts) => intercepts::intercepts(&intercepts),
        Command::Streams(streams) => streams::streams(&streams),
        Command::Limits(limits) => limits::limits(&limits),
        Command::Usage(usage) => usage::usage(&usage),
        Command::Audit(audit) => audit::audit(&audit),
        Command::Settings(settings) => settings::settings(&settings),
        Command::Admin(admin) => admin::admin(&admin),
        Command::Api(api) => api::api(&api),
        Command::Health(health) => return exit(health::health(&health)),
        Command::Cloudflare(cloudflare) => cloudflare::cloudflare(&cloudflare),
        Command::Firewall(firewall) => firewall::firewall(&firewall),
        Command::Backup(backup) => backup::backup(&backup),
        Command::Restore(restore) => restore::restore(&restore),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Alerts(alerts) => alerts::alerts(&alerts),
        Command::Token(token) => token::token(&token),
        Command::Secret(secret) => secret::secret(&secret),
        Command::Migrate(file) => migrate::migrate(&file.config),
        Command::DemoUpstream(demo) => demo_upstream::serve(&demo),
    };
    exit(done.map(|()| ExitCode::SUCCESS))
}

fn exit(done: Result<ExitCode, String>) -> ExitCode {
    let code = done.unwrap_or_else(|message| {
        logs::print(&message);
        ExitCode::FAILURE
    });
    logs::flush();
    code
}

/// The actor of changes by a command, for the audit log.
fn actor() -> Actor {
    let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    Actor { who: maker(), origin: machine.unwrap_or_else(|| "unknown".into()) }
}

/// The operator as the audit log and new bindings name it: the user before `sudo`, or the user of the process, by name or uid.
fn maker() -> String {
    let uid = nix::unistd::getuid();
    // Any user can set SUDO_USER; only for root is it trusted.
    let sudo = std::env::var("SUDO_USER").ok().filter(|name| uid.is_root() && !name.is_empty());
    let named = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let user = sudo.or_else(named).unwrap_or_else(|| format!("uid-{uid}"));
    format!("command:{user}")
}

/// Runs a future on a runtime of one thread.
fn on_runtime<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("cannot start the runtime: {e}"))?.block_on(work)
}
