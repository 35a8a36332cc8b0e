//! YAML to the typed model ([`Settings`]), with positions, environment variables and files. The
//! only user of the YAML crate, and the lowest layer of `src`: imports no other folder except
//! `util`, makes no network call and reads no clock.
//!
//! Each step continues after an error, so that one run reports all errors of a file: [`yaml`]
//! parses text into a tree with positions, [`sections`] decodes the tree into the types of
//! [`model`]. `crate::compile` makes a snapshot of them.

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
mod usage;
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
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

pub use acme::name as acme_name;
pub use model::Settings;
pub use overrides::Overrides;
pub use report::{Mistake, Report};
pub use schema::schema;

/// The maximum size of a configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The maximum size of a file that a configuration refers to, in bytes.
const REFERRED_BYTES_MAX: u64 = 1 << 20;

/// A parsed configuration, not compiled yet.
#[derive(Clone)]
pub struct Parsed {
    /// The settings, as far as they could be decoded.
    pub(crate) settings: Settings,
    /// The errors so far. Compilation adds its own, so that all are reported at once.
    pub(crate) mistakes: Report,
    /// The live settings that override some of it.
    pub(crate) overrides: Overrides,
    /// The tree with positions.
    pub(crate) tree: yaml::Node,
    pub(crate) path: PathBuf,
}

impl Parsed {
    /// With these overrides.
    #[must_use]
    pub fn with(self, overrides: &Overrides) -> Self {
        Self { overrides: overrides.clone(), ..self }
    }

    /// Whether both files have the same content, regardless of overrides.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.tree == other.tree
    }

    /// The keys that are present in the file.
    pub fn written(&self) -> Written {
        let mut places = Written::default();
        places.walk(&self.tree, "");
        places
    }

    /// The configuration as YAML, with secrets masked.
    pub fn masked(&self) -> String {
        masked::text(&self.tree, &schema())
    }

    /// All configured secrets or their references, with their places.
    pub fn secrets(&self) -> Vec<(String, SecretRef)> {
        masked::secrets(&self.tree, &schema()).into_iter().map(|(path, secret)| (report::dotted(&path), secret)).collect()
    }
}

impl Settings {
    /// The network that a first use from `client` binds, by the `key_binding` filters; if they
    /// differ, the smallest.
    pub fn first_use_network(&self, client: IpAddr) -> IpNet {
        let items = self.filters.iter().chain(self.routes.iter().flat_map(|route| &route.filters));
        let configs = items.filter(|item| item.name == KeyBinding::NAME).filter_map(|item| decode(item.config.clone()).ok());
        let networks = configs.map(|config: KeyBindingConfig| config.network(client));
        networks.max_by_key(IpNet::prefix_len).unwrap_or_else(|| KeyBindingConfig::default().network(client))
    }

    /// The replica's name: that of the storage section or the host name, with the admin port, which
    /// distinguishes several replicas on one host.
    pub fn replica(&self) -> String {
        let machine = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "here".into());
        let name = match &self.storage {
            model::Storage::Postgres(postgres) => postgres.replica(),
            _ => machine(),
        };
        format!("{name}:{}", self.admin.address.port())
    }
}

/// The keys that are present in a file.
#[derive(Clone, Debug, Default)]
pub struct Written(BTreeSet<String>);

impl Written {
    /// Whether the key is present, such as `retention.audit`.
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

/// Reads and parses a file. An error: it cannot be read, is not YAML, or names variables that are
/// not set.
pub fn parse_file(path: &Path) -> Result<Parsed, Report> {
    let text = read_bounded(path, FILE_BYTES_MAX).map_err(|message| Report::whole(path, message))?;
    parse(path, &text, &|name| std::env::var(name).ok())
}

/// Parses text as the content of the file `path`. `env` looks up `${…}`.
pub fn parse(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Parsed, Report> {
    let mut report = Report::new(path);
    let Some(mut tree) = yaml::parse(text, &mut report) else { return Err(report) };
    interpolate::apply(&mut tree, env, &mut report);
    let all_known = report.is_empty();
    match sections::decode(&tree, &mut report) {
        // A value from an unset variable cannot be checked.
        Some(mut settings) if all_known => {
            if let model::Storage::Sqlite(sqlite) = &mut settings.storage {
                sqlite.follow(path);
            }
            Ok(Parsed { settings, mistakes: report, overrides: Overrides::default(), tree, path: path.to_owned() })
        }
        _ => Err(report),
    }
}

/// The list in a YAML or JSON file that a configuration refers to. The error has the place in that file.
pub fn read_list<T: DeserializeOwned>(files: &Files, path: &str) -> Result<Vec<T>, Invalid> {
    let text = files.file(path)?;
    let mut report = Report::new(&files.path(path));
    let list = yaml::parse(&text, &mut report).and_then(|tree| sections::decode_list(&tree, &mut report));
    list.ok_or_else(|| Invalid::new(report.to_string()))
}

/// The content of a file that a configuration refers to.
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
    // The size in the metadata may be wrong, so the read is bounded, too.
    let read = if size > bytes_max { 0 } else { file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(wrong)? };
    if size.max(read as u64) > bytes_max {
        return Err(format!("has {} bytes; the maximum is {bytes_max}", size.max(read as u64)));
    }
    Ok(bytes)
}

/// Reads the files that a configuration refers to, relative to its own folder, and records which.
pub struct Files {
    base: PathBuf,
    read: Mutex<BTreeMap<PathBuf, Option<Digest>>>,
    /// Those of the files that contain secrets.
    secret: Mutex<BTreeSet<PathBuf>>,
}

/// The SHA-256 digest of a file.
pub type Digest = [u8; 32];

impl Files {
    /// For the configuration in the file `path`.
    pub fn beside(path: &Path) -> Self {
        Self { base: path.parent().map(Path::to_owned).unwrap_or_default(), read: Mutex::default(), secret: Mutex::default() }
    }

    /// Those of the files that contain secrets.
    pub fn secrets(&self) -> BTreeSet<PathBuf> {
        self.secret.lock().clone()
    }

    /// The files that were read, with their digests; `None`: the file did not exist.
    pub fn digests(&self) -> BTreeMap<PathBuf, Option<Digest>> {
        self.read.lock().clone()
    }

    /// A reader of the same folder with a separate record.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { base: self.base.clone(), read: Mutex::default(), secret: Mutex::default() }
    }

    /// Adds the record of another reader.
    pub fn add(&self, other: Self) {
        self.read.lock().extend(other.read.into_inner());
        self.secret.lock().extend(other.secret.into_inner());
    }

    /// Resolves a path of the configuration.
    pub fn path(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// Resolves a secret. A byte order mark and the line end at the end of a file are removed.
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
        // A file that cannot be read now may be readable later.
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
