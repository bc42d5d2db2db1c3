//! How objects of a kind lie in the store.
//!
//! ```text
//! /registry/PLURAL/[NAMESPACE/]NAME          legacy group
//! /registry/GROUP/PLURAL/[NAMESPACE/]NAME    the others
//! /claims/CLAIM                              the key of the object that holds it
//! ```
//!
//! The value is the object's JSON without `apiVersion`, `kind` and `metadata.resourceVersion`, and begins with the
//! metadata. So an answer is made from it by putting a head before it, without parsing.

use bytes::{BufMut, Bytes, BytesMut};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Resource, events};

/// How every stored value begins. Metadata is never empty: an object has a name.
const HEAD: &[u8] = br#"{"metadata":{"#;

/// The prefix of all keys of a kind. Both groups of events share theirs.
pub fn prefix(resource: &Resource) -> String {
    match resource.group {
        "" | events::GROUP => format!("/registry/{}/", resource.plural),
        group => format!("/registry/{group}/{}/", resource.plural),
    }
}

/// The prefix of the keys in a namespace, or of all where it is empty.
pub fn scope(resource: &Resource, namespace: &str) -> String {
    let mut key = prefix(resource);
    if resource.namespaced && !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key
}

/// The key of an object.
pub fn key(resource: &Resource, namespace: &str, name: &str) -> String {
    scope(resource, namespace) + name
}

/// The key under which a claim is held.
pub fn claim_key(claim: &str) -> String {
    format!("/claims/{claim}")
}

/// `v1` or `apps/v1`.
pub fn api_version(resource: &Resource) -> String {
    match resource.group {
        "" => resource.version.to_owned(),
        group => format!("{group}/{}", resource.version),
    }
}

/// The bytes that are stored for an object.
pub fn encode(resource: &Resource, object: &Value) -> Bytes {
    let stored = match resource.group {
        events::GROUP => serde_json::to_vec(&Stored(&events::to_core(object))),
        _ => serde_json::to_vec(&Stored(object)),
    };
    // A tree of JSON values always has a JSON form.
    stored.unwrap_or_default().into()
}

/// An object in its stored form.
struct Stored<'a>(&'a Value);

impl Serialize for Stored<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("metadata", &Unversioned(&self.0["metadata"]))?;
        let fields = self.0.as_object().into_iter().flatten();
        for (name, value) in fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "apiVersion" | "kind")) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Metadata without the resourceVersion, which is the revision that the store gives.
struct Unversioned<'a>(&'a Value);

impl Serialize for Unversioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.0.as_object().into_iter().flatten();
        serializer.collect_map(fields.filter(|(name, _)| *name != "resourceVersion"))
    }
}

/// The object of stored bytes, in the version of `resource`.
///
/// # Errors
/// Where the bytes are no object.
pub fn decode(resource: &Resource, bytes: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let fields: Map<String, Value> = serde_json::from_slice(bytes)?;
    let mut object = Map::new();
    object.insert("kind".into(), resource.kind.into());
    object.insert("apiVersion".into(), api_version(resource).into());
    object.extend(fields);
    let mut object = Value::Object(object);
    if resource.group == events::GROUP {
        object = events::from_core(&object);
    }
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    Ok(object)
}

/// Appends the JSON of a stored object to `out`; `bare` leaves out kind and apiVersion, as the items of a list have it.
/// False where the bytes must be decoded for it.
pub fn splice(resource: &Resource, bytes: &[u8], revision: u64, bare: bool, out: &mut BytesMut) -> bool {
    let (Some(rest), true) = (bytes.strip_prefix(HEAD), resource.group != events::GROUP) else { return false };
    out.put_u8(b'{');
    if !bare {
        let head = format!(r#""kind":"{}","apiVersion":"{}","#, resource.kind, api_version(resource));
        out.put_slice(head.as_bytes());
    }
    out.put_slice(format!(r#""metadata":{{"resourceVersion":"{revision}","#).as_bytes());
    out.put_slice(rest);
    true
}

#[cfg(test)]
mod tests {
    use super::super::resource::Plain;
    use super::*;
    use serde_json::json;

    static MAPS: Resource = Resource {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &[],
        categories: &[],
        namespaced: true,
        subresources: &[],
        columns: &[],
        selectable: &[],
        expires_after: None,
        virtual_only: false,
        strategy: &Plain,
    };

    #[test]
    fn a_spliced_object_is_the_decoded_one() {
        let object = json!({"data": {"a": "1"}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"resourceVersion": "4", "name": "x", "namespace": "y"}});
        let bytes = encode(&MAPS, &object);
        let mut out = BytesMut::new();
        assert!(splice(&MAPS, &bytes, 7, false, &mut out));
        let spliced: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(spliced, decode(&MAPS, &bytes, 7).unwrap());
        assert_eq!(spliced["metadata"]["resourceVersion"], "7");
        assert_eq!(key(&MAPS, "y", "x"), "/registry/configmaps/y/x");
    }
}
