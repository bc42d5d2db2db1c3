//! TokenReview and SelfSubjectReview (`authentication.k8s.io/v1`).

use api::status::Status;
use serde_json::{Map, Value, json};

use crate::identity::User;
use crate::server::Server;
use crate::token::Tokens;

/// Whose token it is, in the review's status.
///
/// # Errors
/// Where there is no token in it.
pub async fn token_review(tokens: &Tokens, server: &Server, mut review: Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .filter(|audiences| !audiences.is_empty())
        .map(|audiences| audiences.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_else(|| tokens.audiences().to_vec());
    review["status"] = match tokens.verify(server, &token, &wanted).await {
        Ok(verified) => {
            json!({"authenticated": true, "user": user_info(&verified.user), "audiences": verified.audiences})
        }
        Err(error) => json!({"user": {}, "error": error.to_string()}),
    };
    Ok(review)
}

/// `kubectl auth whoami`.
pub fn self_review(user: &User, mut review: Value) -> Value {
    review["status"] = json!({"userInfo": user_info(user)});
    review
}

fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        info.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), user.groups.as_slice().into());
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> =
            user.extra.iter().map(|(key, values)| (key.clone(), values.as_slice().into())).collect();
        info.insert("extra".into(), extra.into());
    }
    info.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoami_leaves_out_what_is_empty() {
        let user = User { name: "jane".into(), groups: vec!["dev".into()], ..User::default() };
        let review = self_review(&user, json!({"kind": "SelfSubjectReview"}));
        assert_eq!(review["status"], json!({"userInfo": {"username": "jane", "groups": ["dev"]}}));
    }
}
