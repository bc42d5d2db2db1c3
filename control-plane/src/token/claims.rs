//! What a service account token says.

use serde::{Deserialize, Serialize};

use super::TokenError;
use crate::identity::User;

/// Clocks may differ by this many seconds.
const LEEWAY: i64 = 60;

/// The claims, all of them required but the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Seconds since 1970, as the other times.
    pub exp: i64,
    #[serde(default)]
    pub iat: i64,
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    #[serde(default)]
    pub nbf: i64,
    pub sub: String,
}

/// What the token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kubernetes {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    /// When the kubelet should have renewed it, for tokens that live longer than they were asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// An object; another one of the same name has another uid.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl Claims {
    /// The user that the token makes of its bearer.
    pub fn user(&self) -> User {
        let (namespace, account) = (&self.kubernetes.namespace, &self.kubernetes.serviceaccount);
        let mut extra = Vec::new();
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.push((format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
            }
        };
        if !self.jti.is_empty() {
            add("credential-id", &format!("JTI={}", self.jti));
        }
        for (kind, reference) in [("node", &self.kubernetes.node), ("pod", &self.kubernetes.pod)] {
            if let Some(reference) = reference {
                add(&format!("{kind}-name"), &reference.name);
                add(&format!("{kind}-uid"), &reference.uid);
            }
        }
        User {
            name: username(namespace, &account.name),
            uid: account.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            extra,
        }
    }
}

/// The user's name of a service account.
pub fn username(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// Judges claims whose signature holds; yields the audiences that the token and the asker share.
pub fn check(claims: &Claims, issuer: &str, wanted: &[String], now: i64) -> Result<Vec<String>, TokenError> {
    if claims.iss != issuer
        || claims.sub != username(&claims.kubernetes.namespace, &claims.kubernetes.serviceaccount.name)
    {
        return Err(TokenError::Issuer);
    }
    if now > claims.exp.saturating_add(LEEWAY) {
        return Err(TokenError::Expired);
    }
    if now + LEEWAY < claims.nbf.max(claims.iat) {
        return Err(TokenError::NotYet);
    }
    let shared: Vec<String> = wanted.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
    if shared.is_empty() {
        return Err(TokenError::Audience { token: claims.aud.clone(), wanted: wanted.to_vec() });
    }
    Ok(shared)
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn claims() -> Claims {
        let reference = |name: &str| Reference { name: name.into(), uid: format!("{name}-uid") };
        Claims {
            aud: vec!["api".into()],
            exp: 2000,
            iat: 1000,
            iss: "issuer".into(),
            jti: "j".into(),
            kubernetes: Kubernetes {
                namespace: "ns".into(),
                pod: Some(reference("pod")),
                node: Some(reference("node")),
                serviceaccount: reference("sa"),
                ..Kubernetes::default()
            },
            nbf: 1000,
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    #[test]
    fn times_issuer_and_audience_are_checked() {
        let wanted = ["api".to_owned(), "other".to_owned()];
        let at = |now| check(&claims(), "issuer", &wanted, now);
        assert_eq!(at(1500), Ok(vec!["api".to_owned()]));
        assert_eq!(at(2060), Ok(vec!["api".to_owned()]));
        assert_eq!(at(2061), Err(TokenError::Expired));
        assert_eq!(at(939), Err(TokenError::NotYet));
        assert_eq!(check(&claims(), "else", &wanted, 1500), Err(TokenError::Issuer));
        assert!(matches!(check(&claims(), "issuer", &wanted[1..], 1500), Err(TokenError::Audience { .. })));
        let for_ever = Claims { exp: i64::MAX, ..claims() };
        assert_eq!(check(&for_ever, "issuer", &wanted, 1500), Ok(vec!["api".to_owned()]));
        let stolen = Claims { sub: "system:serviceaccount:kube-system:sa".into(), ..claims() };
        assert_eq!(check(&stolen, "issuer", &wanted, 1500), Err(TokenError::Issuer));
    }

    #[test]
    fn the_bearer_is_the_service_account() {
        let user = claims().user();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:sa", "sa-uid"));
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        let extra: Vec<_> =
            user.extra.iter().map(|(key, values)| (key.rsplit('/').next().unwrap(), &values[0][..])).collect();
        let expected = [
            ("credential-id", "JTI=j"),
            ("node-name", "node"),
            ("node-uid", "node-uid"),
            ("pod-name", "pod"),
            ("pod-uid", "pod-uid"),
        ];
        assert_eq!(extra, expected);
    }
}
