//! The hash of a pod template that tells the generations of a deployment apart.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The letters of a hash: none that make words or are taken for one another (apimachinery's safe alphabet).
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a, 32 bits, over the template as JSON and the count of collisions before, in up to ten letters.
///
/// The value is our own: upstream hashes a print of its Go structures. Whoever takes over finds the replica set by
/// comparing templates, not by the hash.
pub fn of_template(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    let count = collisions.map(i32::to_le_bytes);
    let bytes = json.iter().chain(count.iter().flatten());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_and_different() {
        let mut template = PodTemplateSpec::default();
        template.metadata.get_or_insert_default().labels = Some([("app".to_owned(), "web".to_owned())].into());
        // A change of the algorithm would roll out every deployment that collided.
        assert_eq!(of_template(&template, None), of_template(&template.clone(), None));
        assert_ne!(of_template(&template, None), of_template(&template, Some(1)));
        assert_ne!(of_template(&template, None), of_template(&PodTemplateSpec::default(), None));
        assert!(of_template(&template, None).bytes().all(|b| LETTERS.contains(&b)));
    }
}
