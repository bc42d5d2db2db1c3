//! An object that a client sends is stored or refused, whatever its kind; what is stored can be read, shown in a table,
//! selected on, and sent as protobuf. The first byte chooses the kind.
#![no_main]

use control_plane::registry::kinds::{RESOURCES, selected};
use control_plane::registry::storage;
use control_plane::verbs::Call;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, body)) = bytes.split_first() else { return };
    let resource = RESOURCES[usize::from(*first) % RESOURCES.len()];
    let Ok(parsed) = api::json::parse(body) else { return };
    let namespace = if resource.namespaced { "default" } else { "" };
    let Ok(object) = Call::internal(resource, namespace, "").rehearse(parsed.value) else { return };
    for column in resource.columns {
        (column.cell)(&object, 1_000_000);
    }
    for field in resource.selectable {
        selected(&object, field);
    }
    resource.strategy.claims(&object);
    resource.strategy.deletion(&object, Some(30));
    storage::decode(resource, &storage::encode(resource, &object), 1).expect("what was stored is read");
    let _ = api::protobuf::encode(&object);
});
