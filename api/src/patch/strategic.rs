//! Strategic merge patch: a merge that knows from the schema which lists merge, and by which key.
//!
//! Source: "Strategic Merge Patch" in the API conventions; k8s.io/apimachinery `util/strategicpatch`.

use serde_json::{Map, Value};

use super::Error;
use crate::schema::{Definition, Field, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `object`, which is of the kind that `definition` describes.
///
/// # Errors
/// Where the patch is no object, a directive is unknown, or an element of a merging list lacks its key.
pub fn strategic(definition: &'static Definition, object: &mut Value, patch: &Value) -> Result<(), Error> {
    let Some(patch) = patch.as_object() else {
        return Err(Error::Malformed("a strategic merge patch must be a JSON object".into()));
    };
    let original = object.as_object().cloned().unwrap_or_default();
    *object = Value::Object(merge_object(Scope::Fields(definition), original, patch)?);
    Ok(())
}

/// What is known of the object whose entries are merged.
#[derive(Clone, Copy)]
enum Scope {
    Fields(&'static Definition),
    /// A map: every entry has this type.
    Entries(Type),
    Unknown,
}

/// How one entry merges.
#[derive(Clone, Copy)]
struct Rule {
    ty: Option<Type>,
    merge: bool,
    replace: bool,
    merge_key: Option<&'static str>,
}

impl Scope {
    fn of(ty: Option<Type>) -> Self {
        match ty {
            Some(Type::Map(inner)) => Self::Entries(*inner),
            Some(ty @ (Type::Object(_) | Type::SchemaOr(..))) => ty.definition().map_or(Self::Unknown, Self::Fields),
            _ => Self::Unknown,
        }
    }

    fn rule(self, name: &str) -> Rule {
        let plain = |ty| Rule { ty, merge: false, replace: false, merge_key: None };
        match self {
            Self::Fields(definition) => match definition.field(name) {
                Some(&Field { ty, merge, replace, merge_key, .. }) => Rule { ty: Some(ty), merge, replace, merge_key },
                None => plain(None),
            },
            Self::Entries(ty) => plain(Some(ty)),
            Self::Unknown => plain(None),
        }
    }
}

impl Rule {
    /// The scope of the objects in a list.
    fn elements(self) -> Scope {
        match self.ty {
            Some(Type::Array(inner)) => Scope::of(Some(*inner)),
            _ => Scope::Unknown,
        }
    }
}

type Object = Map<String, Value>;

fn merge_object(scope: Scope, mut original: Object, patch: &Object) -> Result<Object, Error> {
    match patch.get(PATCH).map(|directive| directive.as_str()) {
        None => {}
        Some(Some("replace")) => return merge_object(scope, Map::new(), &without(patch, PATCH)),
        Some(Some("delete")) => return Ok(Map::new()),
        Some(other) => return Err(unknown_directive(other.unwrap_or_default(), "map")),
    }
    if let Some(kept) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut original, patch, kept)?;
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
            delete_from_list(&mut original, list, value)?;
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key)) {
        if value.is_null() {
            original.shift_remove(key);
            continue;
        }
        let order = element_order(patch, key)?;
        let merged = merge_value(scope.rule(key), original.get_mut(key).map(Value::take), value, order)?;
        original.insert(key.clone(), merged);
    }
    for (key, order) in patch {
        let Some(name) = key.strip_prefix(ELEMENT_ORDER).filter(|name| !patch.contains_key(*name)) else { continue };
        let order = order.as_array().ok_or_else(|| no_list(key))?;
        if let Some(Value::Array(list)) = original.get_mut(name) {
            let server = list.clone();
            *list = in_order(std::mem::take(list), order, &server, scope.rule(name).merge_key);
        }
    }
    Ok(original)
}

fn merge_value(rule: Rule, original: Option<Value>, patch: &Value, order: Option<&[Value]>) -> Result<Value, Error> {
    match patch {
        Value::Object(patch) => {
            let original = match original {
                Some(Value::Object(original)) if !rule.replace => original,
                _ => Map::new(),
            };
            Ok(Value::Object(merge_object(Scope::of(rule.ty), original, patch)?))
        }
        Value::Array(patch) if rule.merge => {
            let original = match original {
                Some(Value::Array(original)) => original,
                _ => Vec::new(),
            };
            Ok(Value::Array(merge_list(rule, original, patch, order)?))
        }
        Value::Array(patch) => patch.iter().map(|item| plain(rule, item)).collect::<Result<_, _>>().map(Value::Array),
        scalar => Ok(scalar.clone()),
    }
}

/// An element of a list that is replaced: without nulls and directives.
fn plain(rule: Rule, item: &Value) -> Result<Value, Error> {
    match item {
        Value::Object(item) => Ok(Value::Object(merge_object(rule.elements(), Map::new(), item)?)),
        other => Ok(other.clone()),
    }
}

fn merge_list(
    rule: Rule,
    mut original: Vec<Value>,
    patch: &[Value],
    order: Option<&[Value]>,
) -> Result<Vec<Value>, Error> {
    let server = original.clone();
    let mut wanted = Vec::new();
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str()) {
            None => wanted.push(item),
            Some(Some("replace")) => replace = true,
            Some(Some("delete")) => {
                let key = item.get(rule.merge_key.unwrap_or_default());
                let key = key.ok_or_else(|| Error::Malformed("delete patch type with no merge key defined".into()))?;
                original.retain(|old| rule.merge_key.and_then(|k| old.get(k)) != Some(key));
            }
            Some(Some("merge")) => {
                return Err(Error::Malformed("merging lists cannot yet be specified in the patch".into()));
            }
            Some(other) => return Err(unknown_directive(other.unwrap_or_default(), "list")),
        }
    }
    if replace {
        return wanted.into_iter().map(|item| plain(rule, item)).collect();
    }
    for item in &wanted {
        merge_element(rule, &mut original, item)?;
    }
    let by_patch: Vec<Value> = wanted.into_iter().cloned().collect();
    Ok(in_order(original, order.unwrap_or(&by_patch), &server, rule.merge_key))
}

fn merge_element(rule: Rule, original: &mut Vec<Value>, item: &Value) -> Result<(), Error> {
    let (Some(key), Some(object)) = (rule.merge_key, item.as_object()) else {
        if !original.contains(item) {
            original.push(item.clone());
        }
        return Ok(());
    };
    let lacks = || Error::Malformed(format!("map: {item} does not contain declared merge key: {key}"));
    let wanted = object.get(key).ok_or_else(lacks)?;
    let place = original.iter().position(|old| old.get(key) == Some(wanted));
    let old = place.and_then(|i| original[i].as_object().cloned()).unwrap_or_default();
    let merged = Value::Object(merge_object(rule.elements(), old, object)?);
    match place {
        Some(i) => original[i] = merged,
        None => original.push(merged),
    }
    Ok(())
}

/// Elements that `order` names stand in its order, the others in the server's; an element that only the server has comes
/// first where the server had it before the next of the patch's.
fn in_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut named, mut own): (Vec<Value>, Vec<Value>) = merged.into_iter().partition(|i| place(order, i).is_some());
    named.sort_by_key(|item| place(order, item));
    own.sort_by_key(|item| place(server, item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(named.len() + own.len());
    let (mut named, mut own) = (named.into_iter().peekable(), own.into_iter().peekable());
    while let (Some(theirs), Some(ours)) = (named.peek(), own.peek()) {
        let before = matches!((place(server, ours), place(server, theirs)), (Some(a), Some(b)) if a < b);
        result.extend(if before { own.next() } else { named.next() });
    }
    result.extend(own);
    result.extend(named);
    result
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn element_order<'a>(patch: &'a Object, key: &str) -> Result<Option<&'a [Value]>, Error> {
    let name = format!("{ELEMENT_ORDER}{key}");
    match patch.get(&name) {
        None => Ok(None),
        Some(order) => order.as_array().map(|list| Some(list.as_slice())).ok_or_else(|| no_list(&name)),
    }
}

fn retain_keys(original: &mut Object, patch: &Object, kept: &Value) -> Result<(), Error> {
    let kept = kept.as_array().ok_or_else(|| no_list(RETAIN_KEYS))?;
    let listed = |key: &str| kept.iter().any(|k| k == key);
    if let Some(stray) = patch.keys().find(|key| !is_directive(key) && !patch[*key].is_null() && !listed(key)) {
        return Err(Error::Malformed(format!(
            "the keys in the {RETAIN_KEYS} list must contain all non-null keys of the patch, {stray:?} is missing"
        )));
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

fn delete_from_list(original: &mut Object, name: &str, gone: &Value) -> Result<(), Error> {
    let gone = gone.as_array().ok_or_else(|| no_list(DELETE_FROM_LIST))?;
    if let Some(Value::Array(list)) = original.get_mut(name) {
        list.retain(|item| !gone.contains(item));
    }
    Ok(())
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_FROM_LIST) || key.starts_with(ELEMENT_ORDER)
}

fn without(object: &Object, key: &str) -> Object {
    object.iter().filter(|(k, _)| *k != key).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn unknown_directive(directive: &str, place: &str) -> Error {
    Error::Malformed(format!("unknown patch type found: {directive} in {place}"))
}

fn no_list(name: &str) -> Error {
    Error::Malformed(format!("the value of {name} must be a list"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::schema::by_kind;

    fn patched(kind: (&str, &str), mut object: Value, patch: Value) -> Result<Value, Error> {
        let definition = by_kind(kind.0, "v1", kind.1).expect("known");
        strategic(definition, &mut object, &patch).map(|()| object)
    }

    fn pod_spec(spec: Value, patch: Value) -> Value {
        let patched = patched(("", "Pod"), json!({ "spec": spec }), json!({ "spec": patch }));
        patched.expect("patches")["spec"].clone()
    }

    #[test]
    fn lists_merge_by_their_keys() {
        let spec =
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"], "env": [{"name": "E", "value": "1"}]}]});
        let patch = json!({"containers": [
            {"name": "b", "image": "2"},
            {"name": "a", "image": "3", "args": ["y"], "env": [{"name": "F", "value": "2"}]}]});
        assert_eq!(
            pod_spec(spec, patch),
            json!({"containers": [
                {"name": "b", "image": "2"},
                {"name": "a", "image": "3", "args": ["y"], "env": [{"name": "F", "value": "2"}, {"name": "E", "value": "1"}]}]})
        );
    }

    #[test]
    fn directives_delete_and_replace() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}});
        assert_eq!(
            pod_spec(spec.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}], "nodeSelector": null})),
            json!({"containers": [{"name": "b"}]})
        );
        assert_eq!(
            pod_spec(spec.clone(), json!({"containers": [{"$patch": "replace"}, {"name": "c"}]})),
            json!({"containers": [{"name": "c"}], "nodeSelector": {"x": "1"}})
        );
        assert_eq!(
            pod_spec(spec, json!({"nodeSelector": {"$patch": "replace", "y": "2"}})),
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"y": "2"}})
        );
    }

    #[test]
    fn retain_keys_clears_the_other_sources() {
        let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let patch =
            json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]});
        assert_eq!(pod_spec(spec, patch), json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}));
        let object = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched(("apps", "Deployment"), object, patch),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
    }

    #[test]
    fn element_order_and_primitive_lists() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "s"}]});
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
            "containers": [{"name": "n"}]});
        assert_eq!(
            pod_spec(spec, patch),
            json!({"containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}, {"name": "s"}]})
        );
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}});
        assert_eq!(patched(("", "Pod"), object, patch), Ok(json!({"metadata": {"finalizers": ["c", "b"]}})));
    }

    #[test]
    fn service_ports_merge_by_port_and_conditions_by_type() {
        let object = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
        let patch = json!({"spec": {"ports": [{"port": 80, "name": "http"}]}});
        assert_eq!(
            patched(("", "Service"), object, patch),
            Ok(json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000, "name": "http"}]}}))
        );
        let object =
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}});
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let merged = patched(("", "Pod"), object, patch).expect("patches");
        assert_eq!(
            merged["status"]["conditions"],
            json!([{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}])
        );
    }

    #[test]
    fn faults_are_named() {
        let said = |patch| patched(("", "Pod"), json!({}), patch).map_err(|e| e.to_string());
        assert_eq!(
            said(json!({"spec": {"containers": [{"image": "x"}]}})),
            Err("map: {\"image\":\"x\"} does not contain declared merge key: name".into())
        );
        assert_eq!(said(json!({"spec": {"$patch": "no"}})), Err("unknown patch type found: no in map".into()));
        assert_eq!(said(json!({"metadata": {"labels": {"a": null}}})), Ok(json!({"metadata": {"labels": {}}})));
    }

    fn containers() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-d]", "[x-z]", 0..4).prop_map(|m| {
            let list: Vec<Value> = m.into_iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
            json!({"spec": {"containers": list}})
        })
    }

    proptest! {
        #[test]
        fn patching_twice_changes_nothing_more(object in containers(), patch in containers()) {
            let once = patched(("", "Pod"), object, patch.clone()).expect("patches");
            prop_assert_eq!(patched(("", "Pod"), once.clone(), patch).expect("patches"), once);
        }

        #[test]
        fn an_object_patched_with_itself_stays(object in containers()) {
            prop_assert_eq!(patched(("", "Pod"), object.clone(), object.clone()).expect("patches"), object);
        }
    }
}
