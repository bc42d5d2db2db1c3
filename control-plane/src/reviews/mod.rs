//! Questions that are answered and not stored: who is this, may he do that, and a token please.

mod access;
mod subject;

use std::net::SocketAddr;
use std::sync::Arc;

use api::status::Status;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::identity::Attributes;
use crate::ports::{AdmissionRequest, Answerer, Operation, Question};
use crate::registry::Subresource;
use crate::server::Server;
use crate::token::Tokens;

/// Answers reviews and token requests.
pub struct Answers {
    pub tokens: Arc<Tokens>,
}

impl Answerer for Answers {
    fn answer<'a>(&'a self, server: &'a Server, question: Question) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move {
            if question.subresource == Some(Subresource::Token) {
                let question = admitted(server, question).await?;
                return self.tokens.answer(server, question).await;
            }
            match question.resource.kind {
                "TokenReview" => subject::token_review(&self.tokens, server, question.object).await,
                "SelfSubjectReview" => Ok(subject::self_review(&question.user, question.object)),
                "SelfSubjectRulesReview" => access::rules_review(&question.user, question.object),
                kind => access::review(server, kind, &question.user, &question.namespace, question.object).await,
            }
        })
    }

    fn published(&self, server: &Server, path: &str) -> Option<(&'static str, Value)> {
        match path.trim_end_matches('/') {
            DISCOVERY => {
                let authority = SocketAddr::new(server.config.advertise_address, server.config.secure_port);
                Some(("application/json", self.tokens.discovery(&format!("https://{authority}{KEYS}"))))
            }
            KEYS => Some(("application/jwk-set+json", json!(self.tokens.jwks()))),
            _ => None,
        }
    }
}

/// Where OpenID Connect Discovery looks for an issuer's description.
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// A token request passes admission, where nodes are held to their own pods.
async fn admitted(server: &Server, question: Question) -> Result<Question, Status> {
    let attributes = Attributes {
        verb: "create".into(),
        group: question.resource.group.into(),
        version: question.resource.version.into(),
        resource: question.resource.plural.into(),
        subresource: "token".into(),
        namespace: question.namespace.clone(),
        name: question.name.clone(),
        path: String::new(),
    };
    let mut request = AdmissionRequest {
        operation: Operation::Create,
        user: question.user,
        attributes,
        resource: question.resource,
        subresource: question.subresource,
        object: question.object,
        old: Arc::new(Value::Null),
        dry_run: question.dry_run,
        warnings: Vec::new(),
    };
    for plugin in &server.ports.admission {
        plugin.admit(server, &mut request).await?;
    }
    Ok(Question { user: request.user, object: request.object, ..question })
}
