//! The published definitions of Kubernetes 1.37 as static tables: what fields a kind has, of which types, how lists
//! merge, and how protobuf numbers them.
//!
//! Source: `data/README.md`.

mod check;
mod normalize;

pub use check::{TypeError, check};
pub(crate) use normalize::hidden;
pub use normalize::normalize;

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// One type of the API.
#[derive(Debug)]
pub struct Definition {
    /// As `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// Sorted by name.
    pub fields: &'static [Field],
    /// Messages of the protobuf form whose fields JSON spells in this object.
    pub inlines: &'static [Inline],
}

/// A message that JSON spells inline, as `VolumeSource` in `Volume`.
#[derive(Debug)]
pub struct Inline {
    pub tag: u32,
    definition: u16,
}

/// A property of a definition.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub ty: Type,
    pub required: bool,
    /// A scalar whose presence means something: zero is kept.
    pub pointer: bool,
    /// Shown even when it is zero.
    pub always: bool,
    /// Protobuf's number; 0 where an `Inline` or the envelope carries the field.
    pub tag: u32,
    pub list: ListType,
    /// A map or object that is replaced as a whole by server-side apply.
    pub atomic: bool,
    /// The strategic merge patch strategies.
    pub merge: bool,
    pub retain_keys: bool,
    pub replace: bool,
    pub merge_key: Option<&'static str>,
}

/// The type of a property, or of the elements of a list or map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    String,
    Int32,
    Int64,
    Double,
    Boolean,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Any object, carried as bytes in protobuf.
    RawExtension,
    FieldsV1,
    /// Any JSON.
    Json,
    /// A list of strings that protobuf wraps in a message.
    StringList,
    /// A JSON schema, or something shorter.
    SchemaOr(SchemaOr, u16),
    Array(&'static Type),
    /// Keys are strings.
    Map(&'static Type),
    /// See [`Type::definition`].
    Object(u16),
}

/// What a JSON schema's place may hold instead of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaOr {
    Bool,
    Array,
    StringArray,
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Unset,
    Atomic,
    Set,
    /// With the keys that tell its elements apart.
    Map(&'static [&'static str]),
}

impl Type {
    /// The definition of an object, or of the objects in a list or map.
    pub fn definition(self) -> Option<&'static Definition> {
        match self {
            Self::Object(index) | Self::SchemaOr(_, index) => Some(at(index)),
            Self::Array(inner) | Self::Map(inner) => inner.definition(),
            _ => None,
        }
    }
}

impl Inline {
    pub fn definition(&self) -> &'static Definition {
        at(self.definition)
    }
}

impl Definition {
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let fields = self.fields;
        fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &fields[i])
    }

    /// The field with this number on the protobuf wire, in this message itself.
    pub fn tagged(&self, tag: u32) -> Option<&'static Field> {
        let fields = self.fields;
        fields.iter().find(|f| f.tag == tag)
    }

    /// The last part of the name, as `Pod`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// Group, version and kind under which the definition is served.
    pub fn kinds(&'static self) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        KINDS.iter().filter(|k| std::ptr::eq(at(k.3), self)).map(|k| (k.0, k.1, k.2))
    }
}

fn at(index: u16) -> &'static Definition {
    &DEFINITIONS[usize::from(index)]
}

/// All definitions, sorted by name.
pub fn definitions() -> &'static [Definition] {
    DEFINITIONS
}

/// By full name, as `io.k8s.api.core.v1.Pod`.
pub fn by_name(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.binary_search_by(|d| d.name.cmp(name)).ok().map(|i| &DEFINITIONS[i])
}

/// By group (empty for the legacy one), version and kind. The options and Status of meta/v1 are found under any group.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Definition> {
    let wanted = (group, version, kind);
    match KINDS.binary_search_by(|(g, v, k, _)| (*g, *v, *k).cmp(&wanted)) {
        Ok(found) => Some(at(KINDS[found].3)),
        Err(_) if matches!(kind, "DeleteOptions" | "Status" | "WatchEvent") => {
            by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
        }
        Err(_) => None,
    }
}

/// By `apiVersion` (`v1`, `apps/v1`) and kind.
pub fn by_api_version(api_version: &str, kind: &str) -> Option<&'static Definition> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    by_kind(group, version, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_definitions_and_their_fields() {
        let deployment = by_kind("apps", "v1", "Deployment").expect("apps/v1 Deployment");
        assert_eq!(deployment.name, "io.k8s.api.apps.v1.Deployment");
        let spec = deployment.field("spec").and_then(|f| f.ty.definition()).expect("spec");
        let replicas = spec.field("replicas").expect("replicas");
        assert_eq!((replicas.ty, replicas.pointer, replicas.tag), (Type::Int32, true, 1));
        let containers = by_name("io.k8s.api.core.v1.PodSpec").and_then(|d| d.field("containers")).expect("containers");
        assert_eq!((containers.merge_key, containers.list), (Some("name"), ListType::Map(&["name"])));
        assert!(deployment.kinds().eq([("apps", "v1", "Deployment")]));
    }

    #[test]
    fn meta_options_come_under_any_group() {
        for group in ["", "policy", "meta.k8s.io", "example.com"] {
            assert!(by_kind(group, "v1", "DeleteOptions").is_some(), "{group}");
        }
        assert!(by_api_version("v1", "Nonsense").is_none());
    }

    #[test]
    fn every_field_of_a_stored_kind_has_a_number_or_stands_inline() {
        for definition in DEFINITIONS.iter().filter(|d| d.name.starts_with("io.k8s.api.core.v1.")) {
            for field in definition.fields.iter().filter(|f| f.tag == 0 && !matches!(f.name, "apiVersion" | "kind")) {
                let inline = definition.inlines.iter().any(|i| i.definition().field(field.name).is_some());
                assert!(inline, "{}.{}", definition.name, field.name);
            }
        }
    }
}
