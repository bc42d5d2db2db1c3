//! Turns `data/*.json` into static tables (`$OUT_DIR/tables.rs`), so that a process pays for the schema only what it touches.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

fn main() {
    println!("cargo::rerun-if-changed=data");
    println!("cargo::rerun-if-changed=build.rs");
    let mut schema = read("data/kubernetes-1.37-schema.json");
    let go = read("data/kubernetes-1.37-go.json");
    add_partial_metadata(&mut schema);
    add_inline_messages(&mut schema, &go);
    let tables = Tables::new(&schema, &go);
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(format!("{out}/tables.rs"), tables.render()).expect("write tables.rs");
}

fn read(path: &str) -> BTreeMap<String, Value> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("read {path}: {e}"));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("parse {path}: {e}"))
}

/// Kinds that the server answers with and that the published schema leaves out.
fn add_partial_metadata(schema: &mut BTreeMap<String, Value>) {
    let gvk = |kind: &str| json!([{"group": "meta.k8s.io", "version": "v1", "kind": kind}]);
    let type_fields = |mut own: Value| {
        own["apiVersion"] = json!({"type": "string"});
        own["kind"] = json!({"type": "string"});
        own
    };
    schema.insert(
        format!("{META}PartialObjectMetadata"),
        json!({
            "properties": type_fields(json!({"metadata": {"$ref": format!("{META}ObjectMeta")}})),
            "protobuf": {"metadata": [1, "message", 0]},
            "x-kubernetes-group-version-kind": gvk("PartialObjectMetadata"),
        }),
    );
    let items = json!({"type": "array", "items": {"$ref": format!("{META}PartialObjectMetadata")}});
    schema.insert(
        format!("{META}PartialObjectMetadataList"),
        json!({
            "properties": type_fields(json!({"metadata": {"$ref": format!("{META}ListMeta")}, "items": items})),
            "protobuf": {"metadata": [1, "message", 0], "items": [2, "message", 1]},
            "x-kubernetes-group-version-kind": gvk("PartialObjectMetadataList"),
        }),
    );
}

/// Gives each message that JSON spells inline a definition, with the types that its parent's properties state.
fn add_inline_messages(schema: &mut BTreeMap<String, Value>, go: &BTreeMap<String, Value>) {
    loop {
        let mut found = Vec::new();
        for (name, definition) in schema.iter() {
            for inline in definition["protobufInline"].as_object().into_iter().flat_map(Map::values) {
                let message = sibling(name, inline[1].as_str().expect("message"));
                if !schema.contains_key(&message) {
                    found.push((message, definition["properties"].clone()));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        for (message, parent) in found {
            schema.insert(message.clone(), inline_message(&message, &parent, go));
        }
    }
}

fn inline_message(message: &str, parent: &Value, go: &BTreeMap<String, Value>) -> Value {
    if message.ends_with(".RuleWithOperations") {
        let mut properties = parent.clone();
        // Its parent's own field.
        properties.as_object_mut().expect("properties").remove("resourceNames");
        let operations = json!({"operations": [1, "string", 1]});
        return json!({"properties": properties, "protobuf": operations, "protobufInline": {"rule": [2, "Rule"]}});
    }
    // The alpha and beta groups share these messages with the stable one.
    let (_, short) = message.rsplit_once('.').expect("dotted name");
    let facts = go.get(message).filter(|f| f.get("protobuf").is_some()).or_else(|| {
        go.iter().find(|(n, f)| n.ends_with(&format!(".{short}")) && f.get("protobuf").is_some()).map(|(_, f)| f)
    });
    let protobuf = facts.unwrap_or_else(|| panic!("no tags for {message}"))["protobuf"].clone();
    let known = protobuf.as_object().expect("tags");
    let mut properties = parent.clone();
    properties.as_object_mut().expect("properties").retain(|name, _| known.contains_key(name));
    json!({"properties": properties, "protobuf": protobuf})
}

fn sibling(name: &str, message: &str) -> String {
    let (package, _) = name.rsplit_once('.').expect("dotted name");
    format!("{package}.{message}")
}

struct Tables<'a> {
    schema: &'a BTreeMap<String, Value>,
    go: &'a BTreeMap<String, Value>,
    /// A definition's place in the table.
    index: BTreeMap<&'a str, usize>,
}

impl<'a> Tables<'a> {
    fn new(schema: &'a BTreeMap<String, Value>, go: &'a BTreeMap<String, Value>) -> Self {
        let index = schema.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        Self { schema, go, index }
    }

    fn render(&self) -> String {
        let mut out = String::from("pub(super) static DEFINITIONS: &[Definition] = &[\n");
        let mut kinds = Vec::new();
        for (i, (name, definition)) in self.schema.iter().enumerate() {
            self.definition(&mut out, name, definition);
            for gvk in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let text = |key: &str| gvk[key].as_str().expect("gvk").to_owned();
                kinds.push((text("group"), text("version"), text("kind"), i));
            }
        }
        kinds.sort();
        out.push_str("];\npub(super) static KINDS: &[(&str, &str, &str, u16)] = &[\n");
        for (group, version, kind, i) in kinds {
            writeln!(out, "({group:?}, {version:?}, {kind:?}, {i}),").expect("write to a string");
        }
        out.push_str("];\n");
        out
    }

    fn definition(&self, out: &mut String, name: &str, definition: &Value) {
        write!(out, "Definition {{ name: {name:?}, fields: &[").expect("write to a string");
        for (field, property) in definition["properties"].as_object().into_iter().flatten().collect::<BTreeMap<_, _>>()
        {
            out.push_str(&self.field(name, definition, field, property));
        }
        out.push_str("], inlines: &[");
        for inline in definition["protobufInline"].as_object().into_iter().flat_map(Map::values) {
            let message = sibling(name, inline[1].as_str().expect("message"));
            let i = self.index[message.as_str()];
            write!(out, "Inline {{ tag: {}, definition: {i} }},", inline[0]).expect("write to a string");
        }
        out.push_str("] },\n");
    }

    fn field(&self, definition: &str, whole: &Value, name: &str, property: &Value) -> String {
        let listed = |facts: &Value, key: &str| facts[key].as_array().is_some_and(|l| l.iter().any(|f| f == name));
        let none = Value::Null;
        let go = self.go.get(definition).unwrap_or(&none);
        let wire = &whole["protobuf"][name];
        let list = match property["x-kubernetes-list-type"].as_str() {
            None => "ListType::Unset".to_owned(),
            Some("atomic") => "ListType::Atomic".to_owned(),
            Some("set") => "ListType::Set".to_owned(),
            Some("map") => format!("ListType::Map(&{})", property["x-kubernetes-list-map-keys"]),
            Some(other) => panic!("list type {other} of {definition}.{name}"),
        };
        let strategies = property["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
        let strategy = |s: &str| strategies.split(',').any(|x| x == s);
        let merge_key = property["x-kubernetes-patch-merge-key"].as_str();
        format!(
            "Field {{ name: {name:?}, ty: {}, required: {}, pointer: {}, always: {}, tag: {}, list: {list}, atomic: {}, \
             merge: {}, retain_keys: {}, replace: {}, merge_key: {merge_key:?} }},",
            self.ty(property, wire[1].as_str().unwrap_or_default()),
            listed(whole, "required"),
            listed(go, "pointers"),
            listed(go, "always"),
            wire[0].as_u64().unwrap_or(0),
            property["x-kubernetes-map-type"] == "atomic",
            strategy("merge"),
            strategy("retainKeys"),
            strategy("replace"),
        )
    }

    /// The Rust expression of a property's type. `wire` is the protobuf kind of the field.
    fn ty(&self, property: &Value, wire: &str) -> String {
        if let Some(reference) = property["$ref"].as_str() {
            return self.reference(reference);
        }
        match property["type"].as_str() {
            Some("array") if wire == "message" && property["items"]["type"] == "string" => {
                "Type::StringList".to_owned()
            }
            Some("array") => format!("Type::Array(&{})", self.ty(&property["items"], "")),
            Some("object") if property["additionalProperties"].is_object() => {
                format!("Type::Map(&{})", self.ty(&property["additionalProperties"], wire.trim_start_matches("map:")))
            }
            Some("string") if property["format"] == "byte" => "Type::Bytes".to_owned(),
            Some("string") => "Type::String".to_owned(),
            Some("boolean") => "Type::Boolean".to_owned(),
            Some("number") => "Type::Double".to_owned(),
            Some("integer") if property["format"] == "int32" => "Type::Int32".to_owned(),
            Some("integer") => "Type::Int64".to_owned(),
            _ => "Type::Json".to_owned(),
        }
    }

    fn reference(&self, name: &str) -> String {
        let (_, short) = name.rsplit_once('.').expect("dotted name");
        let definition = &self.schema[name];
        let special = match short {
            "Time" | "MicroTime" | "Quantity" | "IntOrString" | "RawExtension" | "FieldsV1" => short,
            "JSON" => "Json",
            "Patch" => "Json",
            "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => {
                let props = self.index[sibling(name, "JSONSchemaProps").as_str()];
                return format!("Type::SchemaOr(SchemaOr::{}, {props})", &short["JSONSchemaPropsOr".len()..]);
            }
            _ if definition["type"] == "string" => "String",
            _ => return format!("Type::Object({})", self.index[name]),
        };
        format!("Type::{special}")
    }
}
