//! `hosts.toml`: at which addresses a registry is reached, in which order, and how. Source: containerd's docs/hosts.md
//! and, for what it leaves open, core/remotes/docker/config/hosts.go.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use toml_edit::{Item, TableLike};

/// How to speak to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
    /// TLS where the host speaks it, else none: only a host on this machine, or one that is configured as both.
    Either,
}

/// An address at which a registry is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    pub scheme: Scheme,
    /// HOST or HOST:PORT.
    pub authority: String,
    /// Of the API, as `/v2`.
    pub path: String,
    /// May be asked what a tag means.
    pub resolve: bool,
    /// May be asked for content.
    pub pull: bool,
    /// PEM files of authorities that are trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of certificate and key; one file may hold both.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: Option<bool>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub dial_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostsError {
    #[error("{0} is no TOML: {1}")]
    Toml(PathBuf, String),
    #[error("{file}: {key} of {of}: {why}")]
    Field { file: PathBuf, of: String, key: &'static str, why: String },
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, String),
}

/// The hosts of `registry` in the order in which they are asked, from the first of its folders in `certs_dir` (several:
/// with colons between) or, where it has none, what is usual.
///
/// # Errors
/// Where a file cannot be read or understood. containerd then goes on without the mirrors; here the pull says it.
pub fn load(certs_dir: Option<&Path>, registry: &str) -> Result<Vec<HostConfig>, HostsError> {
    let roots = certs_dir.map(|dirs| std::env::split_paths(dirs).collect::<Vec<_>>()).unwrap_or_default();
    let folder = roots.iter().flat_map(|root| folders(root, registry)).find(|folder| folder.is_dir());
    let Some(folder) = folder else { return Ok(vec![usual(registry, Fields::default())]) };
    let file = folder.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) if !text.trim().is_empty() => parse(&text, &file, registry),
        Ok(_) => Ok(vec![usual(registry, certificates(&folder)?)]),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(vec![usual(registry, certificates(&folder)?)]),
        Err(error) => Err(HostsError::Read(file, error.to_string())),
    }
}

/// Where a registry's files may be, the best first.
fn folders(root: &Path, registry: &str) -> Vec<PathBuf> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = with_port.into_iter().chain([registry.to_owned(), "_default".to_owned()]);
    names.map(|name| root.join(name)).collect()
}

/// Docker's way: `*.crt` are authorities, `*.cert` certificates to show, each with its `.key`.
fn certificates(folder: &Path) -> Result<Fields, HostsError> {
    let failed = |error: std::io::Error| HostsError::Read(folder.to_owned(), error.to_string());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort();
    let mut fields = Fields::default();
    for file in files {
        match file.extension().and_then(std::ffi::OsStr::to_str) {
            Some("crt") => fields.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                fields.client.push((file, Some(key)));
            }
            _ => {}
        }
    }
    Ok(fields)
}

/// The fields that the server and each host may have.
#[derive(Default)]
struct Fields {
    resolve: bool,
    pull: bool,
    ca: Vec<PathBuf>,
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: Option<bool>,
    headers: Vec<(HeaderName, HeaderValue)>,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

/// Reads a `hosts.toml`. The server comes last; without one the registry itself does.
///
/// # Errors
/// Where it is no TOML, or a field has another form than containerd allows.
pub fn parse(text: &str, file: &Path, registry: &str) -> Result<Vec<HostConfig>, HostsError> {
    let document: toml_edit::DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        HostsError::Toml(file.to_owned(), error.to_string().replace('\n', " "))
    })?;
    let mut hosts = Vec::new();
    let field = |key, why: &str| HostsError::Field {
        file: file.to_owned(),
        of: "the file".to_owned(),
        key,
        why: why.to_owned(),
    };
    if let Some(tables) = document.get("host") {
        let tables = tables.as_table_like().ok_or_else(|| field("host", "it is not a table"))?;
        for (address, table) in tables.iter() {
            let reader = Reader { file, of: address };
            let table = table.as_table_like().ok_or_else(|| reader.wrong("host", "it is not a table"))?;
            hosts.push(reader.host(address, reader.fields(table)?)?);
        }
    }
    let reader = Reader { file, of: "the server" };
    let fields = reader.fields(document.as_table())?;
    match document.get("server") {
        None => hosts.push(usual(registry, fields)),
        Some(server) => match server.as_str() {
            Some("") => hosts.push(usual(registry, fields)),
            Some(server) => hosts.push(reader.host(server, fields)?),
            None => return Err(field("server", "it is not a string")),
        },
    }
    Ok(hosts)
}

/// The registry itself, where no file says another address.
fn usual(registry: &str, fields: Fields) -> HostConfig {
    let (scheme, mut skip_verify) = if is_local(registry) {
        match registry.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']')) {
            None | Some("443") => (Scheme::Https, Some(true)),
            Some("80") => (Scheme::Http, None),
            Some(_) => (Scheme::Either, Some(true)),
        }
    } else {
        (Scheme::Https, None)
    };
    if fields.skip_verify.is_some() {
        skip_verify = fields.skip_verify;
    }
    HostConfig {
        scheme,
        authority: if registry == "docker.io" { "registry-1.docker.io".to_owned() } else { registry.to_owned() },
        path: "/v2".to_owned(),
        resolve: true,
        pull: true,
        ca: fields.ca,
        client: fields.client,
        skip_verify,
        headers: fields.headers,
        dial_timeout: fields.dial_timeout,
    }
}

fn is_local(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Reads fields and, where one is wrong, says where.
#[derive(Clone, Copy)]
struct Reader<'a> {
    file: &'a Path,
    of: &'a str,
}

impl Reader<'_> {
    fn wrong(&self, key: &'static str, why: impl Into<String>) -> HostsError {
        HostsError::Field { file: self.file.to_owned(), of: self.of.to_owned(), key, why: why.into() }
    }

    fn host(&self, address: &str, fields: Fields) -> Result<HostConfig, HostsError> {
        let full = if address.starts_with("http") { address.to_owned() } else { format!("https://{address}") };
        let uri: Uri = full.parse().map_err(|error| self.wrong("address", format!("{error}")))?;
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(self.wrong("address", "it is neither https nor http")),
        };
        let authority = uri.authority().ok_or_else(|| self.wrong("address", "it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(self.wrong("address", "it has a user, which is not the place for credentials"));
        }
        let with_tls = !fields.ca.is_empty() || !fields.client.is_empty() || fields.skip_verify.is_some();
        let scheme = match (encrypted, with_tls && authority.port_u16() != Some(80)) {
            (true, _) => Scheme::Https,
            (false, true) => Scheme::Either,
            (false, false) => Scheme::Http,
        };
        let given = uri.path().trim_end_matches('/');
        let path =
            if fields.override_path || given.ends_with("/v2") { given.to_owned() } else { format!("{given}/v2") };
        Ok(HostConfig {
            scheme,
            authority: authority.to_string(),
            path,
            resolve: fields.resolve,
            pull: fields.pull,
            ca: fields.ca,
            client: fields.client,
            skip_verify: fields.skip_verify,
            headers: fields.headers,
            dial_timeout: fields.dial_timeout,
        })
    }

    fn fields(&self, table: &dyn TableLike) -> Result<Fields, HostsError> {
        let (resolve, pull) = match table.get("capabilities") {
            Some(item) => self.capabilities(item)?,
            None => (true, true),
        };
        Ok(Fields {
            resolve,
            pull,
            ca: table.get("ca").map(|item| self.files("ca", item)).transpose()?.unwrap_or_default(),
            client: table.get("client").map(|item| self.pairs(item)).transpose()?.unwrap_or_default(),
            skip_verify: self.flag("skip_verify", table)?,
            headers: table.get("header").map(|item| self.headers(item)).transpose()?.unwrap_or_default(),
            override_path: self.flag("override_path", table)?.unwrap_or(false),
            dial_timeout: table.get("dial_timeout").map(|item| self.duration(item)).transpose()?.flatten(),
        })
    }

    /// Whether it resolves and whether it pulls.
    fn capabilities(&self, item: &Item) -> Result<(bool, bool), HostsError> {
        let names = self.strings("capabilities", item)?;
        if names.is_empty() {
            return Ok((true, true));
        }
        let (mut resolve, mut pull) = (false, false);
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                "push" | "referrers" => {}
                _ => return Err(self.wrong("capabilities", format!("\"{name}\" is none of pull, resolve, push"))),
            }
        }
        Ok((resolve, pull))
    }

    fn flag(&self, key: &'static str, table: &dyn TableLike) -> Result<Option<bool>, HostsError> {
        let read = |item: &Item| item.as_bool().ok_or_else(|| self.wrong(key, "it is neither true nor false"));
        table.get(key).map(read).transpose()
    }

    fn strings(&self, key: &'static str, item: &Item) -> Result<Vec<String>, HostsError> {
        let wrong = || self.wrong(key, "it is not a list of strings");
        let list = item.as_array().ok_or_else(wrong)?;
        list.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
    }

    fn path(&self, text: &str) -> PathBuf {
        // An absolute one replaces the folder.
        self.file.parent().unwrap_or(Path::new("/")).join(text)
    }

    fn files(&self, key: &'static str, item: &Item) -> Result<Vec<PathBuf>, HostsError> {
        match item.as_str() {
            Some(one) => Ok(vec![self.path(one)]),
            None => Ok(self.strings(key, item)?.iter().map(|text| self.path(text)).collect()),
        }
    }

    /// A file, a list of files, or a list of pairs of files.
    fn pairs(&self, item: &Item) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let wrong = || self.wrong("client", "it is not FILE, [FILE, …] or [[CERTIFICATE, KEY], …]");
        if let Some(one) = item.as_str() {
            return Ok(vec![(self.path(one), None)]);
        }
        let one = |value: &toml_edit::Value| match (value.as_str(), value.as_array()) {
            (Some(file), _) => Ok((self.path(file), None)),
            (_, Some(pair)) if pair.len() == 2 => {
                let file = |index| pair.get(index).and_then(toml_edit::Value::as_str).ok_or_else(wrong);
                Ok((self.path(file(0)?), Some(self.path(file(1)?))))
            }
            _ => Err(wrong()),
        };
        item.as_array().ok_or_else(wrong)?.iter().map(one).collect()
    }

    fn headers(&self, item: &Item) -> Result<Vec<(HeaderName, HeaderValue)>, HostsError> {
        let table = item.as_table_like().ok_or_else(|| self.wrong("header", "it is not a table"))?;
        let mut headers = Vec::new();
        for (key, item) in table.iter() {
            let name: HeaderName =
                key.parse().map_err(|_| self.wrong("header", format!("\"{key}\" is no name of a header")))?;
            let values = match item.as_str() {
                Some(one) => vec![one.to_owned()],
                None => self.strings("header", item)?,
            };
            for value in values {
                // The value may be a secret: it is not shown.
                let mut value = HeaderValue::try_from(value)
                    .map_err(|_| self.wrong("header", format!("the value of \"{key}\" cannot be sent")))?;
                value.set_sensitive(true);
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }

    fn duration(&self, item: &Item) -> Result<Option<Duration>, HostsError> {
        let wrong = || self.wrong("dial_timeout", "it is no duration, as \"10s\" or \"1m30s\"");
        let text = item.as_str().ok_or_else(wrong)?;
        if text.is_empty() {
            return Ok(None);
        }
        duration(text).map(Some).ok_or_else(wrong)
    }
}

/// A duration as Go writes it. Source: Go's time.ParseDuration.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, registry: &str) -> Result<Vec<HostConfig>, HostsError> {
        parse(text, Path::new("/certs/x/hosts.toml"), registry)
    }

    fn addresses(hosts: &[HostConfig]) -> Vec<(Scheme, String)> {
        hosts.iter().map(|host| (host.scheme, format!("{}{}", host.authority, host.path))).collect()
    }

    fn failure(text: &str) -> String {
        read(text, "a.b").unwrap_err().to_string()
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            skip_verify = false
            [host."https://z.mirror:5000/cache"]
              capabilities = ["pull", "Resolve"]
              ca = "z.pem"
              [host."https://z.mirror:5000/cache".header]
                X-One = "1"
                X-Many = ["2", "3"]
            [host."a.mirror"]
              capabilities = ["pull"]
              ca = ["one.pem", "/abs/two.pem"]
              client = [["c.cert", "c.key"], "both.pem"]
              override_path = true
              dial_timeout = "1m1.5s"
            [host."http://plain.mirror/api/v2/"]
              client = "one.pem"
              skip_verify = true
        "#;
        let hosts = read(text, "docker.io").unwrap();
        assert_eq!(
            addresses(&hosts),
            [
                (Scheme::Https, "z.mirror:5000/cache/v2".to_owned()),
                (Scheme::Https, "a.mirror".to_owned()),
                (Scheme::Either, "plain.mirror/api/v2".to_owned()),
                (Scheme::Https, "registry-1.docker.io/v2".to_owned()),
            ]
        );
        let headers: Vec<_> =
            hosts[0].headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("x-one", "1"), ("x-many", "2"), ("x-many", "3")]);
        assert_eq!(hosts[0].ca, [PathBuf::from("/certs/x/z.pem")]);
        assert_eq!((hosts[1].resolve, hosts[1].pull), (false, true));
        assert_eq!(hosts[1].ca, [PathBuf::from("/certs/x/one.pem"), PathBuf::from("/abs/two.pem")]);
        let file = |name: &str| PathBuf::from(format!("/certs/x/{name}"));
        assert_eq!(hosts[1].client, [(file("c.cert"), Some(file("c.key"))), (file("both.pem"), None)]);
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!((hosts[2].skip_verify, hosts[3].skip_verify), (Some(true), Some(false)));
    }

    #[test]
    fn without_a_server_the_registry_itself_comes_last() {
        let hosts = read("[host.\"http://127.0.0.1:5000\"]\n", "registry.k8s.io").unwrap();
        assert_eq!(
            addresses(&hosts),
            [(Scheme::Http, "127.0.0.1:5000/v2".to_owned()), (Scheme::Https, "registry.k8s.io/v2".to_owned())]
        );
        let usual = |registry| load(None, registry).unwrap().remove(0);
        assert_eq!(usual("docker.io").authority, "registry-1.docker.io");
        assert_eq!((usual("localhost:5000").scheme, usual("localhost:5000").skip_verify), (Scheme::Either, Some(true)));
        assert_eq!(usual("127.0.0.1:80").scheme, Scheme::Http);
        assert_eq!((usual("[::1]:443").scheme, usual("[::1]").scheme), (Scheme::Https, Scheme::Https));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let host = |line: &str| format!("[host.\"https://m\"]\n{line}\n");
        for (text, told) in [
            (host("capabilities = [\"fly\"]"), "capabilities of https://m: \"fly\""),
            (host("ca = 1"), "ca of https://m"),
            (host("client = [[\"a\"]]"), "client of https://m"),
            (host("skip_verify = \"no\""), "skip_verify of https://m"),
            (host("dial_timeout = \"soon\""), "dial_timeout of https://m"),
            (host("header = { \"a b\" = \"c\" }"), "header of https://m"),
            ("[host.\"https://user:secret@m\"]\n".to_owned(), "not the place for credentials"),
            ("server = 1".to_owned(), "server of the file"),
            ("server = ".to_owned(), "/certs/x/hosts.toml is no TOML"),
        ] {
            assert!(failure(&text).contains(told), "{}", failure(&text));
        }
    }

    #[test]
    fn a_registrys_folder_is_its_own_or_the_default() {
        let root = tempfile::tempdir().unwrap();
        let load = |registry: &str| load(Some(root.path()), registry).unwrap();
        let write = |folder: &str, name: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join(name), text).unwrap();
        };
        assert_eq!(addresses(&load("a.b:1")), [(Scheme::Https, "a.b:1/v2".to_owned())]);
        write("_default", "hosts.toml", "[host.\"http://default\"]");
        write("a.b_1_", "hosts.toml", "[host.\"http://own\"]");
        write("c.d", "ca.crt", "");
        write("c.d", "client.cert", "");
        assert_eq!(load("a.b:1")[0].authority, "own");
        assert_eq!(load("e.f")[0].authority, "default");
        let docker = load("c.d");
        let folder = root.path().join("c.d");
        assert_eq!((docker.len(), &docker[0].ca), (1, &vec![folder.join("ca.crt")]));
        assert_eq!(docker[0].client, [(folder.join("client.cert"), Some(folder.join("client.key")))]);
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1h2m3s"), Some(Duration::from_secs(3723)));
        assert_eq!(duration("1.5ms"), Some(Duration::from_micros(1500)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for wrong in ["", "1", "s", "-1s", "1y", "1e9s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in any::<String>()) {
            let _ = read(&text, "a.b");
        }

        #[test]
        fn no_file_that_is_nearly_right_does(line in "[a-z_]{2,14} = [\\[\\]\"a-z0-9, ]{0,20}") {
            let _ = read(&format!("[host.\"https://m\"]\n{line}\n"), "a.b");
        }
    }
}
