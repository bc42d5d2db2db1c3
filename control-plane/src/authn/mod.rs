//! Who asks: by client certificate, or by a service account's token.

mod certificate;
mod impersonation;

use std::sync::Arc;

use api::status::Status;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::identity::User;
use crate::ports::{Authenticator, Peer};
use crate::server::Server;
use crate::token::Tokens;

/// Certificates first, then tokens, as upstream; then whom the user wants to be.
pub struct Authn {
    pub tokens: Arc<Tokens>,
}

impl Authenticator for Authn {
    fn authenticate<'a>(
        &'a self,
        server: &'a Server,
        request: &'a Parts,
        peer: Option<&'a Peer>,
    ) -> BoxFuture<'a, Result<Option<User>, Status>> {
        Box::pin(async move {
            let user = match peer.and_then(|peer| certificate::user(&peer.certificates, server.now())) {
                Some(user) => Some(user),
                None => self.by_token(server, request).await?,
            };
            user.map(|user| impersonation::impersonate(user, &request.headers)).transpose()
        })
    }
}

impl Authn {
    async fn by_token(&self, server: &Server, request: &Parts) -> Result<Option<User>, Status> {
        let Some(token) = bearer(request) else { return Ok(None) };
        match self.tokens.verify(server, token, self.tokens.audiences()).await {
            Ok(verified) => Ok(Some(verified.user)),
            Err(error) => {
                tracing::warn!(path = request.uri.path(), "unable to authenticate the request: {error}");
                Err(Status::unauthorized())
            }
        }
    }
}

fn bearer(request: &Parts) -> Option<&str> {
    let value = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}
