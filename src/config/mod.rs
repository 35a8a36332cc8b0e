//! YAML in, [`Snapshot`] out. The only user of the YAML crate; no network, no clock.
//!
//! Three steps, each of which goes on after an error so that all of a file's errors are told at once:
//! [`yaml`] reads text into a tree that knows where everything stands, [`sections`] turns the tree into
//! the types of [`model`], and [`compile`] makes a [`Snapshot`] of them.

mod acme;
mod alerts;
pub mod bounds;
mod interpolate;
mod listeners;
mod masked;
pub mod model;
pub mod overrides;
mod redis;
pub mod report;
mod schema;
pub mod sections;
mod storage;
pub mod store_url;
mod upstreams;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use keylatch_filters::contract::{Filter as _, Invalid, Resolve, SecretRef, decode};
use keylatch_filters::key_binding::{KeyBinding, KeyBindingConfig};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

pub use acme::name as acme_name;
pub use model::Settings;
pub use overrides::Overrides;
pub use report::{Mistake, Report};
pub use schema::schema;

/// The largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The largest file a configuration refers to, in bytes.
const REFERRED_BYTES_MAX: u64 = 1 << 20;

/// A file that was read, not compiled yet.
#[derive(Clone)]
pub struct Parsed {
    /// What it says, as far as it could be understood.
    pub(crate) settings: Settings,
    /// What could not. Compiling adds what is wrong with the rest, so that all is told at once.
    pub(crate) mistakes: Report,
    /// What takes the place of some of it.
    pub(crate) overrides: Overrides,
    /// Where it says it.
    pub(crate) tree: yaml::Node,
    pub(crate) path: PathBuf,
}

impl Parsed {
    /// With something else in the place of what it says of filters.
    #[must_use]
    pub fn with(self, overrides: &Overrides) -> Self {
        Self { overrides: overrides.clone(), ..self }
    }

    /// Whether both files say the same, whatever takes the place of some of it.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.tree == other.tree
    }

    /// What stands in the file.
    pub fn written(&self) -> Written {
        let mut places = Written::default();
        places.walk(&self.tree, "");
        places
    }

    /// All of it as YAML, secrets masked.
    pub fn masked(&self) -> String {
        masked::text(&self.tree, &schema())
    }

    /// Every secret that is configured, or where it is, with its place.
    pub fn secrets(&self) -> Vec<(String, SecretRef)> {
        masked::secrets(&self.tree, &schema()).into_iter().map(|(path, secret)| (report::dotted(&path), secret)).collect()
    }
}

impl Settings {
    /// The network that a first use from `client` binds, by the `key_binding` filters; where they differ, the smallest.
    pub fn first_use_network(&self, client: IpAddr) -> IpNet {
        let items = self.filters.iter().chain(self.routes.iter().flat_map(|route| &route.filters));
        let configs = items.filter(|item| item.name == KeyBinding::NAME).filter_map(|item| decode(item.config.clone()).ok());
        let networks = configs.map(|config: KeyBindingConfig| config.network(client));
        networks.max_by_key(IpNet::prefix_len).unwrap_or_else(|| KeyBindingConfig::default().network(client))
    }

    /// This replica's name among those that share a store: that of the storage, or the machine's, with the port by which
    /// several on one machine differ.
    pub fn replica(&self) -> String {
        let machine = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "here".into());
        let name = match &self.storage {
            model::Storage::Postgres(postgres) => postgres.replica(),
            _ => machine(),
        };
        format!("{name}:{}", self.admin.address.port())
    }
}

/// Which places of a file something stands at.
#[derive(Clone, Debug, Default)]
pub struct Written(BTreeSet<String>);

impl Written {
    /// Whether something stands there, such as at `retention.audit`.
    pub fn has(&self, place: &str) -> bool {
        self.0.contains(place)
    }

    fn walk(&mut self, node: &yaml::Node, place: &str) {
        for (key, below) in node.entries() {
            let place = if place.is_empty() { key.name.clone() } else { format!("{place}.{}", key.name) };
            self.walk(below, &place);
            self.0.insert(place);
        }
    }
}

/// Reads a file. An error: it cannot be read, is not YAML, or names variables that are not set.
pub fn parse_file(path: &Path) -> Result<Parsed, Report> {
    let text = read_bounded(path, FILE_BYTES_MAX).map_err(|message| Report::whole(path, message))?;
    parse(path, &text, &|name| std::env::var(name).ok())
}

/// Reads text as if it stood in the file `path`. `env` is asked for `${…}`.
pub fn parse(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Parsed, Report> {
    let mut report = Report::new(path);
    let Some(mut tree) = yaml::parse(text, &mut report) else { return Err(report) };
    interpolate::apply(&mut tree, env, &mut report);
    let all_known = report.is_empty();
    match sections::decode(&tree, &mut report) {
        // What stands for a value that is not known cannot be judged.
        Some(mut settings) if all_known => {
            if let model::Storage::Sqlite(sqlite) = &mut settings.storage {
                sqlite.follow(path);
            }
            Ok(Parsed { settings, mistakes: report, overrides: Overrides::default(), tree, path: path.to_owned() })
        }
        _ => Err(report),
    }
}

/// What a file that a configuration refers to holds.
pub fn read(path: &Path) -> Result<String, String> {
    read_bounded(path, REFERRED_BYTES_MAX)
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, String> {
    let bytes = read_bytes(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| "cannot be read: it is not UTF-8".into())
}

fn read_bytes(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let wrong = |e: std::io::Error| format!("cannot be read: {e}");
    let file = File::open(path).map_err(wrong)?;
    let size = file.metadata().map_err(wrong)?.len();
    let mut bytes = Vec::new();
    // What it says of its size is not all that may come of it.
    let read = if size > bytes_max { 0 } else { file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(wrong)? };
    if size.max(read as u64) > bytes_max {
        return Err(format!("has {} bytes; at most {bytes_max} are read", size.max(read as u64)));
    }
    Ok(bytes)
}

/// Reads the files a configuration names, relative to its own folder, and remembers which.
pub struct Files {
    base: PathBuf,
    read: Mutex<BTreeMap<PathBuf, Option<Digest>>>,
    /// Those of them that hold secrets.
    secret: Mutex<BTreeSet<PathBuf>>,
}

/// What a file held: SHA-256.
pub type Digest = [u8; 32];

impl Files {
    /// For the configuration in the file `path`.
    pub fn beside(path: &Path) -> Self {
        Self { base: path.parent().map(Path::to_owned).unwrap_or_default(), read: Mutex::default(), secret: Mutex::default() }
    }

    /// Those of them that hold secrets.
    pub fn secrets(&self) -> BTreeSet<PathBuf> {
        self.secret.lock().clone()
    }

    /// Which were read, and what they held; `None`: it was looked for, and not there.
    pub fn digests(&self) -> BTreeMap<PathBuf, Option<Digest>> {
        self.read.lock().clone()
    }

    /// Reads the same files, and remembers only those that it has read itself.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { base: self.base.clone(), read: Mutex::default(), secret: Mutex::default() }
    }

    /// Remembers those of another, too.
    pub fn add(&self, other: Self) {
        self.read.lock().extend(other.read.into_inner());
        self.secret.lock().extend(other.secret.into_inner());
    }

    /// The path that a configuration names.
    pub fn path(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// A secret, wherever it is; a byte order mark and the line end at a file's end are no part of it.
    pub fn secret(&self, reference: &SecretRef) -> Result<String, Invalid> {
        match reference.file() {
            Some(path) => Ok(keylatch_filters::contract::trim_secret(&self.secret_file(path)?).to_owned()),
            None => Ok(reference.text().to_owned()),
        }
    }
}

impl Resolve for Files {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        let path = self.path(path);
        let text = read(&path).map_err(|message| Invalid::new(format!("`{}` {message}", path.display())));
        // What cannot be read now may be there later.
        self.read.lock().insert(path, text.as_ref().ok().map(|text| Sha256::digest(text).into()));
        text
    }

    fn secret_file(&self, path: &str) -> Result<String, Invalid> {
        self.secret.lock().insert(self.path(path));
        self.file(path)
    }

    fn secret_bytes(&self, path: &str) -> Result<Vec<u8>, Invalid> {
        let path = self.path(path);
        self.secret.lock().insert(path.clone());
        let bytes = read_bytes(&path, REFERRED_BYTES_MAX).map_err(|message| Invalid::new(format!("`{}` {message}", path.display())));
        self.read.lock().insert(path, bytes.as_ref().ok().map(|bytes| Sha256::digest(bytes).into()));
        bytes
    }

    fn exists(&self, path: &str) -> bool {
        let path = self.path(path);
        let there = path.exists();
        if !there {
            self.read.lock().insert(path, None);
        }
        there
    }
}
