//! `[object, patch]`: patching ends, and leaves an object or an error.
#![no_main]

use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok((object, patch)) = serde_json::from_slice::<(Value, Value)>(bytes) else { return };
    let pod = api::schema::by_kind("", "v1", "Pod").expect("a pod is known");
    let mut patched = object.clone();
    if api::patch::strategic(pod, &mut patched, &patch).is_ok() {
        assert!(patched.is_object());
    }
    let _ = api::patch::merge(&mut object.clone(), &patch);
    let _ = api::patch::json(&mut object.clone(), &patch);
});
