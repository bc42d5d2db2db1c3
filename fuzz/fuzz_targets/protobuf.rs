//! A body decodes or is refused; what decodes encodes again, and then to the same object.
#![no_main]

use api::protobuf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(object) = protobuf::decode(bytes) else { return };
    let again = protobuf::encode(&object).expect("what was decoded encodes");
    assert_eq!(protobuf::decode(&again).expect("what was encoded decodes"), object);
});
