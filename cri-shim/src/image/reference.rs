//! References to images, and their full form as Docker and containerd write it. Source: distribution/reference,
//! grammar in its reference.go and rules of normalize.go.

use super::digest::{Digest, is_hex};

const DOCKER: &str = "docker.io";
/// Bytes of registry and path together.
const NAME_LIMIT: usize = 255;

/// A reference in its full form: registry, path, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    path: String,
    version: Version,
}

/// What a reference picks out of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("the image reference is empty")]
    Empty,
    #[error("image reference \"{0}\": the repository has more than 255 characters")]
    Long(String),
    #[error("image reference \"{0}\": \"{1}\" is no registry, which is HOST or HOST:PORT")]
    Registry(String, String),
    #[error("image reference \"{0}\": \"{1}\" is no repository: lower-case letters, digits, and single separators")]
    Path(String, String),
    #[error("image reference \"{0}\": \"{1}\" is no tag")]
    Tag(String, String),
    #[error("image reference \"{0}\": {1}")]
    Digest(String, super::digest::DigestError),
}

impl Reference {
    /// Fills in what is left out: `busybox` is `docker.io/library/busybox:latest`. A digest makes a tag beside it moot.
    ///
    /// # Errors
    /// Where the text is no reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let shown = || text.chars().take(300).collect::<String>();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                (named, Some(Digest::parse(digest).map_err(|why| ReferenceError::Digest(shown(), why))?))
            }
            None => (text, None),
        };
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, None),
        };
        let (registry, path) = split_registry(name);
        if !is_registry(&registry) {
            return Err(ReferenceError::Registry(shown(), registry));
        }
        if !path.split('/').all(is_component) || (name.len() == 64 && is_hex(name)) {
            return Err(ReferenceError::Path(shown(), path));
        }
        if registry.len() + 1 + path.len() > NAME_LIMIT {
            return Err(ReferenceError::Long(shown()));
        }
        let tag = tag.unwrap_or("latest");
        if !is_tag(tag) {
            return Err(ReferenceError::Tag(shown(), tag.to_owned()));
        }
        let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
        Ok(Self { registry, path, version })
    }

    /// As `docker.io`: the name of the registry, which is not always where it is reached.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// As `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The tag or the digest, as it stands in a manifest's address.
    pub fn object(&self) -> &str {
        match &self.version {
            Version::Tag(tag) => tag,
            Version::Digest(digest) => digest.as_str(),
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// `REGISTRY/PATH:TAG`, where it has a tag.
    pub fn tagged(&self) -> Option<String> {
        match &self.version {
            Version::Tag(_) => Some(self.to_string()),
            Version::Digest(_) => None,
        }
    }

    /// `REGISTRY/PATH@DIGEST`, with this digest.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.path)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.digest().is_some() { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.registry, self.path, self.object())
    }
}

/// The first component is a registry where it cannot be a folder of Docker Hub.
fn split_registry(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first != first.to_ascii_lowercase() =>
        {
            (first, rest)
        }
        _ => (DOCKER, name),
    };
    let registry = if registry == "index.docker.io" { DOCKER } else { registry };
    if registry == DOCKER && !path.contains('/') {
        return (registry.to_owned(), format!("library/{path}"));
    }
    (registry.to_owned(), path.to_owned())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (None, port.strip_prefix(':').map_or(if port.is_empty() { None } else { Some("") }, Some))
    } else {
        text.split_once(':').map_or((Some(text), None), |(host, port)| (Some(host), Some(port)))
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label)) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Runs of lower-case letters and digits, between them one dot, one or two underscores, or any number of dashes.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_is_left_out_is_filled_in() {
        let at = |name: &str| format!("{name}@{D}");
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("kindest/node", "docker.io/kindest/node:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("REGISTRY/x", "REGISTRY/x:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a.b/c__d/e-----f.g_h:_T.-1", "a.b/c__d/e-----f.g_h:_T.-1"),
            (&at("busybox"), &at("docker.io/library/busybox")),
            (&at("a.b/c:tag"), &at("a.b/c")),
        ] {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(Reference::parse(full).unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            ":tag",
            "UPPER",
            "a//b",
            "a/",
            "/a",
            "a b",
            "a:",
            "a:b:c",
            "a@sha256:12",
            "a.b:port/c",
            "a.b:99999/c",
            "a..b",
            "a.-b/C",
            "a___b",
            "-a",
            "http://a.b/c",
            "[::1/x",
            "[zz]/x",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            &format!("a.b/{}", "c".repeat(255)),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_names_under_which_an_image_is_kept() {
        let digest = Digest::parse(D).unwrap();
        let tag = Reference::parse("a.b/c:d").unwrap();
        assert_eq!((tag.tagged(), tag.at(&digest)), (Some("a.b/c:d".to_owned()), format!("a.b/c@{D}")));
        let pinned = Reference::parse(&format!("a.b/c:d@{D}")).unwrap();
        assert_eq!((pinned.tagged(), pinned.object()), (None, D));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_has_a_full_form_that_reads_the_same(text in "[a-zA-Z0-9./:@_\\-\\[\\]]{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn no_bytes_break_it(text in any::<String>()) {
            let _ = Reference::parse(&text);
        }
    }
}
