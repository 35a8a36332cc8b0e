//! The commands, one file each.

mod admin;
mod admin_client;
mod alerts;
mod api;
mod audit;
mod backup;
mod bindings;
mod check;
mod cloudflare;
mod demo_upstream;
mod doctor;
mod explain;
mod filters;
mod firewall;
mod health;
mod intercepts;
mod limits;
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

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::process;
use crate::sql::audit::Actor;
use crate::telemetry::logs;

/// A programmable edge proxy for model APIs: who is it really, whose key is it, how often, and streams that stay open.
#[derive(Parser)]
#[command(
    name = "keylatch",
    version,
    after_help = "Begin with `keylatch run --config config/quickstart.yaml`; `keylatch filters` explains what can stand in a chain."
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

/// Where the configuration is, if no option says so: in the working directory, or where the package has it.
fn usual_config() -> PathBuf {
    const HERE: &str = "keylatch.yaml";
    const OF_PACKAGE: &str = "/etc/keylatch/keylatch.yaml";
    let is_there = |path: &&str| std::path::Path::new(path).exists();
    [HERE, OF_PACKAGE].iter().find(|path| is_there(path)).copied().unwrap_or(HERE).into()
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The configuration file, in the place of `--config`
    #[arg(value_name = "FILE")]
    path: Option<PathBuf>,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// By what a process is started that takes another one's place
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
    /// Serve. SIGHUP reloads the configuration, SIGTERM lets open requests end, SIGINT ends at once
    Run(Run),
    /// Say everything that is wrong with a configuration. Exit code 0: nothing is
    Check(Check),
    /// Have the running process reload its configuration, and wait for the outcome
    Reload(ConfigFile),
    /// Have a new process, of the program that is installed now, take the place of the running one, which lets end what is open
    Upgrade(ConfigFile),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Say what would become of a request, by the process that runs here: its client address and why, its route, what each filter, rule,
    /// binding and limit says. Sends, counts and binds nothing
    Explain(explain::Explain),
    /// Write the reference pages of the manual, as Markdown
    Reference(reference::Reference),
    /// Print the manual of the filters, or of one
    Filters {
        /// The filter's name
        name: Option<String>,
    },
    /// Look at and change bindings, in the stores of a configuration
    Bindings(bindings::Bindings),
    /// How things are and have been, over all replicas, as the process that runs here knows
    Status(status::Status),
    /// Look at requests that were refused because of a binding, as the process that runs here knows
    Intercepts(intercepts::Intercepts),
    /// Look at and end event streams that are open on any replica, through the process that runs here
    Streams(streams::Streams),
    /// See who is near or over a limit on any replica, and give it back, through the process that runs here
    Limits(limits::Limits),
    /// Show who has changed what, in the store of a configuration
    Audit(audit::Audit),
    /// Look at and change what can be changed while it runs, in the store of a configuration
    Settings(settings::Settings),
    /// Look at and change who may sign in to the admin API; the way back in for whoever has locked himself out
    Admin(admin::Admin),
    /// Make any call of the admin API to the process that runs here, and print its JSON
    Api(api::Api),
    /// The state of the process that runs here, and what is wrong. Exit code 0: ok; 1: it does not run, or is not ready; 3: degraded, an
    /// upstream or the store is away; 4: down, no upstream has a server that works
    Health(health::Health),
    /// Look at Cloudflare's address ranges, and have them read anew
    Cloudflare(cloudflare::Cloudflare),
    /// Print rules that let only Cloudflare, SSH and WireGuard in. Applies nothing
    Firewall(firewall::Firewall),
    /// Copy what is stored, with its secret and the configuration, while it is in use; for PostgreSQL, say how
    Backup(backup::Backup),
    /// Put a backup back; for PostgreSQL, say how
    Restore(restore::Restore),
    /// Look at what should be seen to before strangers come, on this machine and in the servers it needs. Exit code 0: nothing
    Doctor(doctor::Doctor),
    /// Whether alerts arrive
    Alerts(alerts::Alerts),
    /// Make tokens that `bearer` knows by their hashes
    Token(token::Token),
    /// Make the next secret under which keys are hashed, and say how it takes the place of the one in use
    Secret(secret::Secret),
    /// Bring the store's schema up to date, and do nothing else
    Migrate(ConfigFile),
    /// Serve a made-up model API, to try things with: OpenAI's chat completions, plain and streamed
    DemoUpstream(demo_upstream::DemoUpstream),
}

/// Runs a command. What it cannot do is said on standard error, and the exit code is 1.
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
        Command::Filters { name } => filters::filters(name.as_deref()),
        Command::Bindings(bindings) => bindings::bindings(&bindings),
        Command::Status(status) => status::status(&status),
        Command::Intercepts(intercepts) => intercepts::intercepts(&intercepts),
        Command::Streams(streams) => streams::streams(&streams),
        Command::Limits(limits) => limits::limits(&limits),
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

/// Who changes something by a command.
fn actor() -> Actor {
    let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    Actor { who: maker(), origin: machine.unwrap_or_else(|| "unknown".into()) }
}

/// Who makes a binding by hand: the user before `sudo`, or the user of the process, by name or else by number.
fn maker() -> String {
    let uid = nix::unistd::getuid();
    // Only root can be believed to have become root by sudo.
    let sudo = std::env::var("SUDO_USER").ok().filter(|name| uid.is_root() && !name.is_empty());
    let named = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let user = sudo.or_else(named).unwrap_or_else(|| format!("uid-{uid}"));
    format!("command:{user}")
}

/// Runs what waits for stores.
fn on_runtime<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("no runtime to be had: {e}"))?.block_on(work)
}
