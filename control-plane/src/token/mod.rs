//! Service account tokens: JWTs that the API server signs and checks, bound to objects that must be alive.
//!
//! Source: KEP-1205 (bound tokens), KEP-4193 (their node and id), RFC 7519.

mod claims;
mod keys;
mod living;
mod request;

use api::status::Status;

pub use claims::{Claims, Kubernetes, Reference, check};
pub use keys::{Jwks, KeyError, Keys};
pub use request::POD_TOKEN_SECONDS;

use crate::identity::User;
use crate::server::Server;

/// Signs and checks tokens for one issuer.
pub struct Tokens {
    keys: Keys,
    issuer: String,
    /// Who the API server is to a token; what a token without wishes is for.
    audiences: Vec<String>,
}

/// Why a token does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenError {
    #[error("invalid bearer token")]
    Malformed,
    #[error("invalid bearer token, service account token is from another issuer")]
    Issuer,
    #[error("invalid bearer token, service account token has expired")]
    Expired,
    #[error("invalid bearer token, service account token is not valid yet")]
    NotYet,
    #[error("invalid bearer token, token audiences {token:?} is invalid for the target audiences {wanted:?}")]
    Audience { token: Vec<String>, wanted: Vec<String> },
    #[error("invalid bearer token, {what} UID ({found}) does not match claim ({claimed})")]
    Uid { what: &'static str, found: String, claimed: String },
    /// What it is bound to is gone.
    #[error("invalid bearer token, service account token has been invalidated")]
    Invalidated,
    #[error("check a service account token: {0}")]
    Unknown(Status),
}

/// A holder of a valid token, and the audiences for which it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub user: User,
    pub audiences: Vec<String>,
}

impl Tokens {
    pub fn new(keys: Keys, issuer: String, audiences: Vec<String>) -> Self {
        let audiences = if audiences.is_empty() { vec![issuer.clone()] } else { audiences };
        Self { keys, issuer, audiences }
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The keys with which anybody can check tokens (`/openid/v1/jwks`).
    pub fn jwks(&self) -> Jwks {
        self.keys.jwks()
    }

    /// What `/.well-known/openid-configuration` answers, where the issuer is a URL.
    pub fn discovery(&self, jwks_uri: &str) -> serde_json::Value {
        serde_json::json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.keys.algorithms(),
        })
    }

    /// Whose token this is. `wanted` are the audiences that the asker stands for; one must be the token's.
    ///
    /// # Errors
    /// Where the token does not hold now.
    pub async fn verify(&self, server: &Server, token: &str, wanted: &[String]) -> Result<Verified, TokenError> {
        let claims = self.keys.decode(token).ok_or(TokenError::Malformed)?;
        let audiences = claims::check(&claims, &self.issuer, wanted, server.now())?;
        living::check(server, &claims.kubernetes).await?;
        Ok(Verified { user: claims.user(), audiences })
    }
}
