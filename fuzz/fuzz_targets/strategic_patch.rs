//! `[object, patch]`: patching ends, and leaves an object or an error.
#![no_main]

use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok((mut object, patch)) = serde_json::from_slice::<(Value, Value)>(bytes) else { return };
    let pod = api::schema::by_kind("", "v1", "Pod").expect("a pod is known");
    if api::patch::strategic(pod, &mut object, &patch).is_ok() {
        assert!(object.is_object());
    }
});
