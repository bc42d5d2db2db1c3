//! Questions that are answered and not stored: who is this, may he do that, and a token please.

mod access;
mod subject;

use std::sync::Arc;

use api::status::Status;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::ports::{Answerer, Question};
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
}
