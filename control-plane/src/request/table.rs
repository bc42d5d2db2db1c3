//! Tables: what `kubectl get` prints. Source: `meta.k8s.io/v1` Table.

use serde_json::{Value, json};

use super::encode::partial;
use super::negotiate::Include;
use crate::registry::Resource;

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
                    resources may allow a client to request the generation of an appropriate name automatically.";

/// A Table of rows; `columns` is false for the later events of a watch, which repeat none.
pub fn table(resource: &Resource, version: &str, metadata: Value, rows: Vec<Value>, columns: bool) -> Value {
    let mut definitions = Vec::new();
    if columns {
        if has_name(resource) {
            definitions
                .push(json!({"name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0}));
        }
        definitions.extend(resource.columns.iter().map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": "", "description": column.description,
                "priority": column.priority,
            })
        }));
    }
    json!({
        "kind": "Table", "apiVersion": version, "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// Whether the name comes first; Events have a column for it at the end.
fn has_name(resource: &Resource) -> bool {
    resource.columns.iter().all(|column| column.name != "Name")
}

/// The row of an object.
pub fn row(resource: &Resource, object: &Value, include: Include, now: i64) -> Value {
    let mut cells = Vec::with_capacity(resource.columns.len() + 1);
    if has_name(resource) {
        cells.push(object["metadata"]["name"].clone());
    }
    cells.extend(resource.columns.iter().map(|column| (column.cell)(object, now)));
    let shown = match include {
        Include::None => return json!({"cells": cells}),
        Include::Metadata => partial(object, false),
        Include::Object => object.clone(),
    };
    json!({"cells": cells, "object": shown})
}
