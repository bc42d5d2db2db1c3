//! Reading and writing `metadata` of any object.

use serde_json::{Map, Value};

/// Names made from `generateName` end in these: no vowels, nothing that looks alike.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const NAME_LIMIT: usize = 63;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Empty where absent; so are the other texts here.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// Empty for an object of cluster scope.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

pub fn api_version(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
}

/// `namespace/name`, or the name alone.
pub fn key(object: &Value) -> String {
    match namespace(object) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

/// An object, or null.
pub fn labels(object: &Value) -> &Value {
    object.get("metadata").and_then(|m| m.get("labels")).unwrap_or(&Value::Null)
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object).get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

pub fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
}

/// Seconds since 1970.
pub fn creation_time(object: &Value) -> Option<i64> {
    seconds(text(object, "creationTimestamp"))
}

/// When a deleted object's grace ends, in seconds since 1970. `None` while nobody has deleted it.
pub fn deletion_time(object: &Value) -> Option<i64> {
    seconds(text(object, "deletionTimestamp"))
}

pub fn is_deleted(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

pub fn deletion_grace(object: &Value) -> Option<i64> {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64)
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// Each is an `OwnerReference`.
pub fn owners(object: &Value) -> &[Value] {
    object.pointer("/metadata/ownerReferences").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The owner with `controller: true`.
pub fn controller(object: &Value) -> Option<&Value> {
    owners(object).iter().find(|owner| owner["controller"] == true)
}

/// The reference by which another object names `owner` as its controller.
pub fn controller_reference(owner: &Value) -> Value {
    serde_json::json!({
        "apiVersion": api_version(owner), "kind": kind(owner), "name": name(owner), "uid": uid(owner),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// `metadata`, made where it is absent. `None` where the object or its metadata is no JSON object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

/// Sets a field of `metadata`.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(field.to_owned(), value.into());
    }
}

/// A name for `generateName: base`: five characters that `random` chooses, after at most 58 of the base.
pub fn generated_name(base: &str, random: u64) -> String {
    let limit = NAME_LIMIT - SUFFIX_LENGTH;
    let cut = base.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= limit).last().unwrap_or(0);
    format!("{}{}", &base[..cut], suffix(random))
}

/// Five characters, as in `web-7d9f8-x2k4b`.
pub fn suffix(random: u64) -> String {
    let base = SUFFIX_ALPHABET.len() as u64;
    let mut rest = random;
    let mut digit = || {
        let digit = SUFFIX_ALPHABET[(rest % base) as usize];
        rest /= base;
        char::from(digit)
    };
    (0..SUFFIX_LENGTH).map(|_| digit()).collect()
}

/// Writes a hash with the alphabet of generated names, as in pod-template-hash: digits and letters that spell no words.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| char::from(SUFFIX_ALPHABET[usize::from(b) % SUFFIX_ALPHABET.len()])).collect()
}

fn seconds(text: &str) -> Option<i64> {
    crate::time::parse(text).map(|(seconds, _)| seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_metadata_and_bears_its_absence() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "n", "finalizers": ["x"],
            "deletionTimestamp": "1970-01-01T00:01:00Z",
            "ownerReferences": [{"uid": "1"}, {"uid": "2", "controller": true}]}});
        assert_eq!((name(&pod), key(&pod).as_str(), deletion_time(&pod)), ("a", "n/a", Some(60)));
        assert_eq!(controller(&pod).map(|o| &o["uid"]), Some(&json!("2")));
        assert!(finalizers(&pod).eq(["x"]));
        let none = json!({"metadata": null});
        assert_eq!((name(&none), labels(&none), owners(&none).len()), ("", &Value::Null, 0));
    }

    #[test]
    fn generated_names_are_cut_and_legal() {
        let made = generated_name(&"a".repeat(70), u64::MAX);
        assert_eq!(made.len(), 63);
        assert!(crate::names::dns_label(&made).is_empty());
        assert_ne!(generated_name("web-", 1), generated_name("web-", 2));
    }
}
