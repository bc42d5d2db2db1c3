//! The keys of service account tokens: one signs, any of several may have signed.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Claims;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no public key of RSA or the curve P-256 in PEM")]
    Public { path: PathBuf },
    #[error("{path} holds no private key of RSA or the curve P-256 in PEM (PKCS #8)")]
    Private { path: PathBuf },
    #[error("what {path} signs is verified by none of the public keys")]
    NoMatch { path: PathBuf },
}

/// The private key and all public ones.
pub struct Keys {
    signing: EncodingKey,
    header: Header,
    public: Vec<Public>,
}

struct Public {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
    jwk: Value,
}

/// A JSON Web Key Set (RFC 7517).
#[derive(Debug, Clone, Serialize)]
pub struct Jwks {
    pub keys: Vec<Value>,
}

impl Keys {
    /// `signing` is the private key (`--service-account-signing-key-file`), `public` what tokens may be checked with
    /// (`--service-account-key-file`), among them the private key's own.
    ///
    /// # Errors
    /// Where a file cannot be read, is no key, or the keys do not belong together.
    pub fn load(signing: &Path, public: &[PathBuf]) -> Result<Self, KeyError> {
        let read = |path: &Path| std::fs::read(path).map_err(|source| KeyError::Read { path: path.to_owned(), source });
        let public = public
            .iter()
            .map(|path| Public::parse(&read(path)?).ok_or_else(|| KeyError::Public { path: path.clone() }))
            .collect::<Result<_, _>>()?;
        Self::pair(&read(signing)?, public, signing)
    }

    fn pair(pem: &[u8], public: Vec<Public>, path: &Path) -> Result<Self, KeyError> {
        let candidates =
            [(EncodingKey::from_ec_pem(pem), Algorithm::ES256), (EncodingKey::from_rsa_pem(pem), Algorithm::RS256)];
        let (signing, algorithm) = candidates
            .into_iter()
            .find_map(|(key, algorithm)| key.ok().map(|key| (key, algorithm)))
            .ok_or_else(|| KeyError::Private { path: path.to_owned() })?;
        let mut header = Header { typ: None, ..Header::new(algorithm) };
        let probe = jsonwebtoken::encode(&header, &json!({}), &signing)
            .map_err(|_| KeyError::Private { path: path.to_owned() })?;
        let own = public.iter().find(|key| key.verify::<Value>(&probe).is_some());
        let own = own.ok_or_else(|| KeyError::NoMatch { path: path.to_owned() })?;
        header.kid = Some(own.id.clone());
        Ok(Self { signing, header, public })
    }

    /// # Errors
    /// Where the signature cannot be made.
    pub fn encode(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&self.header, claims, &self.signing)
    }

    /// The claims of a token that one of the keys signed; their content is not judged here.
    pub fn decode(&self, token: &str) -> Option<Claims> {
        let id = jsonwebtoken::decode_header(token).ok()?.kid;
        self.public.iter().filter(|key| id.as_ref().is_none_or(|id| *id == key.id)).find_map(|key| key.verify(token))
    }

    pub fn jwks(&self) -> Jwks {
        Jwks { keys: self.public.iter().map(|key| key.jwk.clone()).collect() }
    }

    pub fn algorithms(&self) -> Vec<Value> {
        let mut all: Vec<Value> = self.public.iter().map(|key| key.jwk["alg"].clone()).collect();
        all.dedup();
        all
    }
}

impl Public {
    fn parse(pem: &[u8]) -> Option<Self> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der).ok()?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (algorithm, key, jwk) = match info.parsed().ok()? {
            PublicKey::EC(point) => {
                let point = point.data();
                let (x, y) = (point.get(1..33)?, point.get(33..65).filter(|_| point.len() == 65)?);
                let jwk = json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256",
                    "x": text(x), "y": text(y)});
                (Algorithm::ES256, DecodingKey::from_ec_components(&text(x), &text(y)).ok()?, jwk)
            }
            PublicKey::RSA(rsa) => {
                let modulus = trim(rsa.modulus);
                let jwk = json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256",
                    "n": text(modulus), "e": text(trim(rsa.exponent))});
                (Algorithm::RS256, DecodingKey::from_rsa_raw_components(modulus, trim(rsa.exponent)), jwk)
            }
            _ => return None,
        };
        Some(Self { id, algorithm, key, jwk })
    }

    /// Signature only: times, issuer and audience are the caller's.
    fn verify<T: serde::de::DeserializeOwned>(&self, token: &str) -> Option<T> {
        let mut validation = Validation::new(self.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode(token, &self.key, &validation).ok().map(|data| data.claims)
    }
}

/// An integer of ASN.1 without the zero that keeps it positive.
fn trim(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::claims::tests::claims;
    use super::*;

    pub fn keys(dir: &Path) -> Keys {
        lifecycle::pki::ensure_cluster_pki(dir, &[], &[]).unwrap();
        Keys::load(&dir.join("sa.key"), &[dir.join("sa.pub")]).unwrap()
    }

    #[test]
    fn only_own_tokens_are_read() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (keys(ours.path()), keys(theirs.path()));
        let token = ours.encode(&claims()).unwrap();
        assert_eq!(ours.decode(&token), Some(claims()));
        assert_eq!(theirs.decode(&token), None);
        let (head, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = head.split_once('.').unwrap();
        let forged = Claims { sub: "system:serviceaccount:kube-system:x".into(), ..claims() };
        let forged = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        assert_eq!(ours.decode(&format!("{header}.{forged}.{signature}")), None);
        assert_eq!(ours.jwks().keys[0]["crv"], "P-256");
    }

    #[test]
    fn keys_that_do_not_belong_together_are_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        keys(one.path());
        keys(two.path());
        let mixed = Keys::load(&one.path().join("sa.key"), &[two.path().join("sa.pub")]);
        assert!(matches!(mixed, Err(KeyError::NoMatch { .. })));
    }
}
