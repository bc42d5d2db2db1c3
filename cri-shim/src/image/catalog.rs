//! From containerd's names to the images that the CRI shows. An image is all names that lead to one configuration.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use super::digest::{Digest, is_hex};
use super::manifest::Descriptor;
use super::reference::Reference;

/// Says that a name was made by a CRI server, as containerd's own writes it.
pub const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// Says that the kubelet must not collect the image.
pub const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Truncated identifiers that are shorter say nothing.
const SHORTEST: usize = 3;

/// A name in containerd's image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub target: Descriptor,
    pub pinned: bool,
}

/// What never changes about a target: its content is named by its digest.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The configuration's digest.
    pub id: String,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// The manifest of this platform.
    pub manifest: Digest,
    pub layers: Vec<Descriptor>,
    pub config: Arc<ImageConfiguration>,
    pub chain: Vec<String>,
}

/// An image as the CRI shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The configuration's digest, `sha256:` and hex: the same in every answer.
    pub id: String,
    /// Names with a tag, sorted.
    pub tags: Vec<String>,
    /// Names with a digest, sorted.
    pub digests: Vec<String>,
    /// Bytes that were downloaded.
    pub size: u64,
    pub config: Arc<ImageConfiguration>,
    /// The snapshot on which a container's root stands.
    pub chain_id: String,
    /// What the names lead to: an index or a manifest.
    pub target: Descriptor,
    pub user: User,
    /// The kubelet must not collect it.
    pub pinned: bool,
    /// Of the configuration.
    pub labels: HashMap<String, String>,
}

/// Whom the image wants to run as; the group is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum User {
    #[default]
    Unset,
    Id(i64),
    Name(String),
}

impl User {
    /// From a configuration's `User`: `UID`, `NAME`, each with `:GROUP` or without.
    pub fn of(text: &str) -> Self {
        let user = text.split_once(':').map_or(text, |(user, _)| user);
        match user.parse() {
            Ok(id) => Self::Id(id),
            Err(_) if user.is_empty() => Self::Unset,
            Err(_) => Self::Name(user.to_owned()),
        }
    }
}

/// The images behind the names, by identifier. Names without facts are not (wholly) there and are left out.
pub fn images(records: &[Record], facts: &HashMap<Digest, Arc<Facts>>, pinned: &[String]) -> BTreeMap<String, Image> {
    let mut images = BTreeMap::new();
    for record in records {
        let Some(facts) = facts.get(&record.target.digest) else { continue };
        let image = images.entry(facts.id.clone()).or_insert_with(|| new_image(facts, &record.target));
        image.pinned |= record.pinned || pinned.contains(&record.name);
        if Digest::parse(&record.name).is_ok() {
            continue; // the identifier's own name
        }
        let names = if record.name.contains('@') { &mut image.digests } else { &mut image.tags };
        names.push(record.name.clone());
    }
    for image in images.values_mut() {
        image.tags.sort();
        image.digests.sort();
    }
    images
}

fn new_image(facts: &Facts, target: &Descriptor) -> Image {
    let config = facts.config.config().as_ref();
    Image {
        id: facts.id.clone(),
        tags: Vec::new(),
        digests: Vec::new(),
        size: facts.size,
        config: facts.config.clone(),
        chain_id: facts.chain.last().cloned().unwrap_or_default(),
        target: target.clone(),
        user: config.and_then(|config| config.user().as_deref()).map(User::of).unwrap_or_default(),
        pinned: false,
        labels: config.and_then(|config| config.labels().clone()).unwrap_or_default(),
    }
}

/// The image that is meant: by identifier, by any reference, or by a truncated identifier that only one has.
pub fn lookup<'a>(images: &'a BTreeMap<String, Image>, wanted: &str) -> Option<&'a Image> {
    if let Some(image) = images.get(wanted) {
        return Some(image);
    }
    let full = Reference::parse(wanted).map(|reference| reference.to_string()).ok();
    let named = |image: &&Image| {
        image.tags.iter().chain(&image.digests).any(|name| name == wanted || full.as_ref() == Some(name))
    };
    images.values().find(named).or_else(|| {
        let short = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if short.len() < SHORTEST || !is_hex(short) {
            return None;
        }
        let mut fitting = images.values().filter(|image| image.id["sha256:".len()..].starts_with(short));
        fitting.next().filter(|_| fitting.next().is_none())
    })
}

/// All of containerd's names that lead to the image `id`: what its removal takes away.
pub fn names<'a>(
    records: &'a [Record],
    facts: &'a HashMap<Digest, Arc<Facts>>,
    id: &'a str,
) -> impl Iterator<Item = &'a str> {
    let leads = move |record: &&Record| {
        record.name == id || facts.get(&record.target.digest).is_some_and(|facts| facts.id == id)
    };
    records.iter().filter(leads).map(|record| record.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::OCI_MANIFEST;

    fn target(text: &str) -> Descriptor {
        Descriptor::new(OCI_MANIFEST, text.as_bytes())
    }

    fn record(name: &str, text: &str) -> Record {
        Record { name: name.to_owned(), target: target(text), pinned: false }
    }

    fn id(text: &str) -> String {
        Digest::of(text.as_bytes()).to_string()
    }

    fn facts(entries: &[(&str, &str)]) -> HashMap<Digest, Arc<Facts>> {
        let facts = |config: &str| Facts {
            id: id(config),
            size: 7,
            manifest: Digest::of(b"m"),
            layers: Vec::new(),
            config: Arc::default(),
            chain: vec!["bottom".to_owned(), "top".to_owned()],
        };
        entries.iter().map(|(t, c)| (target(t).digest, Arc::new(facts(c)))).collect()
    }

    #[test]
    fn an_image_is_all_names_of_one_configuration() {
        let at = format!("a.b/c@{}", target("one").digest);
        let records = [
            record("d.e/f:2", "two"),
            record("a.b/c:1", "one"),
            record(&at, "one"),
            record(&id("config"), "one"),
            record("a.b/c:gone", "missing"),
        ];
        let facts = facts(&[("one", "config"), ("two", "config")]);
        let images = images(&records, &facts, &["d.e/f:2".to_owned()]);
        assert_eq!(images.len(), 1);
        let image = &images[&id("config")];
        assert_eq!(
            (&image.tags, &image.digests),
            (&vec!["a.b/c:1".to_owned(), "d.e/f:2".to_owned()], &vec![at.clone()])
        );
        assert_eq!((image.chain_id.as_str(), image.size, image.pinned), ("top", 7, true));
        let mut gone: Vec<_> = names(&records, &facts, &image.id).collect();
        gone.sort_unstable();
        assert_eq!(gone, ["a.b/c:1", &at, "d.e/f:2", &id("config")]);
    }

    #[test]
    fn an_image_is_found_by_every_kind_of_name() {
        let at = format!("docker.io/library/c@{}", target("one").digest);
        let records = [record("docker.io/library/c:latest", "one"), record(&at, "one"), record("x.y/other:1", "two")];
        let images = images(&records, &facts(&[("one", "config"), ("two", "other")]), &[]);
        let hex = id("config")["sha256:".len()..].to_owned();
        let by_tag_and_digest = format!("c:whatever@{}", target("one").digest);
        for wanted in ["c", "c:latest", "docker.io/c", &at, &by_tag_and_digest, &id("config"), &hex, &hex[..12]] {
            assert_eq!(lookup(&images, wanted).map(|image| image.id.clone()), Some(id("config")), "{wanted}");
        }
        for wanted in ["", "c:2", "ab", "zzz", "sha256:", &id("nothing")] {
            assert_eq!(lookup(&images, wanted), None, "{wanted}");
        }
    }

    #[test]
    fn a_truncated_identifier_of_two_images_means_neither() {
        let mut images = images(&[record("a.b/c:1", "one")], &facts(&[("one", "config")]), &[]);
        let image = images[&id("config")].clone();
        let short = &image.id["sha256:".len()..][..6];
        assert!(lookup(&images, short).is_some());
        let twin = format!("sha256:{short}{}", "0".repeat(58));
        images.insert(twin.clone(), Image { id: twin, ..image.clone() });
        assert_eq!(lookup(&images, short), None);
    }

    #[test]
    fn a_user_is_an_identifier_or_a_name() {
        assert_eq!(User::of(""), User::Unset);
        assert_eq!(User::of("1002"), User::Id(1002));
        assert_eq!(User::of("1003:users"), User::Id(1003));
        assert_eq!(User::of("www-data:100"), User::Name("www-data".to_owned()));
    }
}
