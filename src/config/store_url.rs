//! Parses the URLs of PostgreSQL and Redis, in the forms that hosting providers give out. Errors
//! name the invalid part and never quote the URL, which may contain a password.

use std::net::IpAddr;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::model::PostgresTls;

/// One server of a PostgreSQL URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host name or address, or the folder of a Unix socket.
    pub name: String,
    /// The port.
    pub port: u16,
}

impl Host {
    /// Whether the server is on this host.
    pub fn is_local(&self) -> bool {
        let loopback = self.name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        self.name == "localhost" || self.name.starts_with('/') || loopback
    }
}

/// A parsed `postgres://user:password@host:5432,other:5432/database?…`.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The servers, in the order in which they are tried; at least one.
    pub hosts: Vec<Host>,
    /// The database.
    pub database: Option<String>,
    /// The verification of `sslmode`.
    pub tls: Option<PostgresTls>,
    /// Whether the URL has `channel_binding=require`: the server must prove its identity.
    pub binds_channel: bool,
}

const PARAMETERS: &str = "supported parameters after `?` are `sslmode`, `channel_binding`, `target_session_attrs` and, for a Unix socket, \
    `host=/FOLDER`; configure other options beside the URL";

impl PostgresUrl {
    /// Parses a URL. In the password every character may be literal, except `%`, which begins an
    /// escape such as `%40`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or("must begin with `postgres://`, such as `postgres://user:password@host:5432/keylatch`")?;
        let (user, password, rest) = credentials(rest)?;
        if rest.contains('#') {
            return Err("has a `#` after the host; write it as %23".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut url = Self {
            user,
            password,
            hosts: Vec::new(),
            database: Some(database).filter(|name| !name.is_empty()).map(|name| decoded(name, "database")).transpose()?,
            tls: None,
            binds_channel: false,
        };
        if !hosts.is_empty() {
            url.hosts = hosts.split(',').map(host).collect::<Result<_, _>>()?;
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            url.parameter(parameter)?;
        }
        if url.hosts.is_empty() {
            url.hosts.push(Host { name: "localhost".into(), port: 5432 });
        }
        Ok(url)
    }

    fn parameter(&mut self, parameter: &str) -> Result<(), String> {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (name, value) {
            ("host", folder) => {
                let folder = decoded(folder, "socket folder")?;
                if !folder.starts_with('/') {
                    return Err(
                        "has `host=` without the folder of a Unix socket; write servers before the database, separated by `,`".into()
                    );
                }
                let port = self.hosts.first().map_or(5432, |host| host.port);
                self.hosts = vec![Host { name: folder, port }];
            }
            // Encryption without verification would accept any server, so `require` verifies, too.
            ("sslmode", "require" | "verify-full") => self.tls = Some(PostgresTls::VerifyFull),
            ("sslmode", "verify-ca") => self.tls = Some(PostgresTls::VerifyCa),
            ("sslmode", "disable") => self.tls = Some(PostgresTls::Off),
            ("sslmode", _) => return Err("has an `sslmode` other than `disable`, `require`, `verify-ca` and `verify-full`".into()),
            ("channel_binding", "require") => self.binds_channel = true,
            ("channel_binding", "disable" | "prefer") | ("target_session_attrs", "read-write" | "primary") => {}
            ("channel_binding", _) => return Err("has a `channel_binding` other than `disable`, `prefer` and `require`".into()),
            ("target_session_attrs", _) => {
                return Err("has a `target_session_attrs` other than `read-write` and `primary`: Keylatch writes".into());
            }
            _ => return Err(format!("has an unknown parameter; {PARAMETERS}")),
        }
        Ok(())
    }

    /// The verification of the servers. `configured` is the option beside the URL.
    pub fn verification(&self, configured: Option<PostgresTls>) -> Result<PostgresTls, String> {
        let tls = match (configured, self.tls) {
            (Some(configured), Some(said)) if configured != said => {
                return Err("has an `sslmode` that contradicts `tls`; remove one of them".into());
            }
            (configured, said) => configured.or(said),
        };
        let local = self.hosts.iter().all(Host::is_local);
        let tls = tls.unwrap_or(if local { PostgresTls::Off } else { PostgresTls::VerifyFull });
        // A verified certificate proves the identity as channel binding would.
        if self.binds_channel && tls != PostgresTls::VerifyFull {
            return Err("has `channel_binding=require`, which needs a verified server: `tls: verify_full`".into());
        }
        Ok(tls)
    }
}

/// Decoded user and password, and the rest. The last `@` ends them: an earlier one belongs to the
/// password.
fn credentials(text: &str) -> Result<(Option<String>, Option<String>, &str), String> {
    let Some((credentials, rest)) = text.rsplit_once('@') else { return Ok((None, None, text)) };
    let (user, password) = match credentials.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (credentials, None),
    };
    let user = decoded(user, "user")?;
    let password = password.map(|password| decoded(password, "password")).transpose()?;
    Ok((Some(user).filter(|user| !user.is_empty()), password, rest))
}

fn decoded(text: &str, part: &str) -> Result<String, String> {
    if let Some(odd) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "has a character that must be escaped in its {part}: write U+{:04X} as %{:02X}",
            u32::from(odd),
            u32::from(odd)
        ));
    }
    let mut pieces = text.split('%');
    pieces.next();
    if pieces.any(|piece| !(piece.len() >= 2 && piece.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))) {
        return Err(format!("has a `%` in its {part} that is not part of an escape; write it as %25"));
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| format!("has escapes in its {part} that are not UTF-8"))?;
    if decoded.contains('\0') {
        return Err(format!("has a null character in its {part}"));
    }
    Ok(decoded.into_owned())
}

fn host(text: &str) -> Result<Host, String> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']').ok_or("has a `[` without `]` in its host")?;
            (name, port.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    let port = match port {
        None | Some("") => 5432,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("has a port that is not a number from 1 to 65535")?,
    };
    let name = decoded(name, "host")?;
    if name.is_empty() || name.contains([':', '@', '?', '#']) && name.parse::<IpAddr>().is_err() {
        return Err("has an empty or malformed host; write an IPv6 address in `[` and `]`".into());
    }
    Ok(Host { name, port })
}

/// A Redis URL with user and password escaped as a URL parser requires.
pub fn redis(text: &str) -> Result<String, String> {
    const FORM: &str = "must be `redis://user:password@host:6379/0`, or `rediss://` for TLS";
    const SCHEMES: [&str; 4] = ["redis", "rediss", "valkey", "valkeys"];
    if ["unix://", "redis+unix://", "valkey+unix://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Ok(text.to_owned());
    }
    let (scheme, rest) = text.split_once("://").filter(|(scheme, _)| SCHEMES.contains(scheme)).ok_or(FORM)?;
    let (user, password, rest) = credentials(rest)?;
    if rest.contains(['?', '#']) {
        return Err("has a `?` or `#` after the host; configure parameters beside the URL; certificates are always verified".into());
    }
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    if server.contains(',') {
        return Err("names more than one server; list sentinels or nodes of a cluster under `sentinels` or `cluster`".into());
    }
    host(server)?;
    if !database.is_empty() && database.parse::<u16>().is_err() {
        return Err("has a database after `/` that is not a number".into());
    }
    let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let credentials = match (user, password) {
        (None, None) => String::new(),
        (user, None) => format!("{}@", escaped(&user.unwrap_or_default())),
        (user, Some(password)) => format!("{}:{}@", escaped(&user.unwrap_or_default()), escaped(&password)),
    };
    Ok(format!("{scheme}://{credentials}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<(String, u16)> {
        PostgresUrl::parse(url).unwrap().hosts.into_iter().map(|host| (host.name, host.port)).collect()
    }

    #[test]
    fn passwords_may_contain_any_character() {
        for (written, password) in [("p#a?s/s", "p#a?s/s"), ("a@b:c", "a@b:c"), ("%40%23%25", "@#%"), ("ü&=", "ü&=")] {
            let url = PostgresUrl::parse(&format!("postgres://user:{written}@db.example.com/keys")).unwrap();
            assert_eq!(url.password.as_deref(), Some(password));
            assert_eq!((url.user.as_deref(), url.database.as_deref()), (Some("user"), Some("keys")));
            let url = redis(&format!("redis://user:{written}@127.0.0.1:6379/1")).unwrap();
            let url = reqwest::Url::parse(&url).unwrap();
            assert_eq!(percent_decode_str(url.password().unwrap()).decode_utf8().unwrap(), password);
            assert_eq!((url.host_str(), url.path()), (Some("127.0.0.1"), "/1"));
        }
    }

    #[test]
    fn several_hosts_sockets_and_defaults() {
        assert_eq!(hosts("postgres://a:5433,b,[::1]:5434/d"), [("a".into(), 5433), ("b".into(), 5432), ("::1".into(), 5434)]);
        assert_eq!(hosts("postgres:///d?host=/run/postgresql"), [("/run/postgresql".into(), 5432)]);
        assert_eq!(hosts("postgres://u@/d"), [("localhost".into(), 5432)]);
    }

    #[test]
    fn parameters_of_providers() {
        let tls = |parameters: &str, configured| {
            PostgresUrl::parse(&format!("postgres://u:p@db.example.com/d?{parameters}")).and_then(|url| url.verification(configured))
        };
        assert_eq!(tls("sslmode=require&channel_binding=require", None), Ok(PostgresTls::VerifyFull));
        assert_eq!(tls("sslmode=disable", None), Ok(PostgresTls::Off));
        assert_eq!(tls("target_session_attrs=read-write", None), Ok(PostgresTls::VerifyFull));
        for (parameters, configured, says) in [
            ("sslmode=prefer", None, "sslmode"),
            ("sslmode=disable", Some(PostgresTls::VerifyFull), "contradicts"),
            ("channel_binding=require", Some(PostgresTls::Off), "channel_binding"),
            ("target_session_attrs=any", None, "target_session_attrs"),
            ("password=swordfish", None, "unknown parameter"),
        ] {
            let error = tls(parameters, configured).unwrap_err();
            assert!(error.contains(says) && !error.contains("swordfish"), "{error}");
        }
    }

    #[test]
    fn errors_name_the_part_and_contain_no_password() {
        for (url, says) in [
            ("postgress://u:swordfish@h/d", "must begin with"),
            ("postgres://u:swordfish@h:x/d", "port"),
            ("postgres://u:swordfish@h:70000/d", "port"),
            ("postgres://u:sword%fish@h/d", "`%`"),
            ("postgres://u:sword fish@h/d", "%20"),
            ("postgres://u:swordfish@h/d#x", "%23"),
            ("postgres://u:swordfish@a,,b/d", "host"),
        ] {
            let error = PostgresUrl::parse(url).err().unwrap();
            assert!(error.contains(says) && !error.contains("fish"), "{error}");
        }
        for (url, says) in [
            ("http://swordfish@x", "must be"),
            ("redis://:swordfish@h:x/0", "port"),
            ("redis://:swordfish@h/x", "database"),
            ("redis://:swordfish@h,g", "more than one"),
            ("rediss://:swordfish@h/0#insecure", "always verified"),
        ] {
            let error = redis(url).unwrap_err();
            assert!(error.contains(says) && !error.contains("swordfish"), "{error}");
        }
    }
}
