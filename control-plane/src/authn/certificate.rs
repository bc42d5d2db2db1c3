//! A client certificate's user: its common name, with its organizations as groups.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::identity::User;

/// The user of the leaf, which the handshake verified; none without a name, or when its time has passed meanwhile.
pub fn user(chain: &[CertificateDer<'_>], now: i64) -> Option<User> {
    let leaf = chain.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() || now < validity.not_before.timestamp() {
        return None;
    }
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).filter(|name| !name.is_empty())?;
    let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let groups = organizations.chain(["system:authenticated".to_owned()]).collect();
    let fingerprint: String = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let credential =
        ("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={fingerprint}")]);
    Some(User { name: name.to_owned(), uid: String::new(), groups, extra: vec![credential] })
}

#[cfg(test)]
mod tests {
    use lifecycle::pki::{Ca, Subject};
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn name_and_groups_come_from_the_subject_while_it_is_valid() {
        let ca = Ca::create("kubernetes").unwrap();
        let issued = ca.issue(&Subject::client("system:node:n1", Some("system:nodes"))).unwrap();
        let chain = [CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()];
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let user_now = user(&chain, now).unwrap();
        assert_eq!(user_now.name, "system:node:n1");
        assert_eq!(user_now.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(user(&chain, now + 2 * 365 * 86400), None);
        assert_eq!(user(&[], now), None);
    }
}
