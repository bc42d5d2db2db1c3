//! `kubectl --as`: administrators act as somebody else. Anyone who asks for it and may not is refused: to serve him
//! under his own name would do what he did not ask for.

use api::status::Status;
use http::HeaderMap;

use crate::authz;
use crate::identity::{Attributes, User};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// The user that the headers name, or `user` where they name none.
pub fn impersonate(user: User, headers: &HeaderMap) -> Result<User, Status> {
    let all = |name: &str| headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned);
    let names = |header: &str| [USER, UID, GROUP].contains(&header) || header.starts_with(EXTRA);
    if !headers.keys().any(|header| names(header.as_str())) {
        return Ok(user);
    }
    let Some(name) = all(USER).next().filter(|name| !name.is_empty()) else {
        let why = "requested impersonation without impersonating a user";
        return Err(Status::internal(why));
    };
    if !user.in_group(authz::MASTERS) {
        let attributes =
            Attributes { verb: "impersonate".into(), resource: "users".into(), name, ..Attributes::default() };
        return Err(authz::forbidden(&user, &attributes, ""));
    }
    let mut groups: Vec<String> = all(GROUP).collect();
    if let Some((namespace, _)) = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
        && groups.is_empty()
    {
        groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
    }
    let known = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|group| group == known) {
        groups.push(known.to_owned());
    }
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            extra.push((key.to_owned(), all(header.as_str()).collect()));
        }
    }
    Ok(User { name, uid: all(UID).next().unwrap_or_default(), groups, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn administrators_may_and_others_may_not() {
        let admin = User { name: "admin".into(), groups: vec![authz::MASTERS.into()], ..User::default() };
        let jane = User { name: "jane".into(), ..User::default() };
        let asked = headers(&[(USER, "bob"), (GROUP, "dev"), (GROUP, "ops")]);
        assert_eq!(impersonate(jane.clone(), &headers(&[])), Ok(jane.clone()));
        let bob = impersonate(admin.clone(), &asked).unwrap();
        assert_eq!((bob.name.as_str(), bob.groups.join(" ")), ("bob", "dev ops system:authenticated".to_owned()));
        assert_eq!(
            impersonate(jane, &asked).unwrap_err().message,
            "users \"bob\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope"
        );
        let account = impersonate(admin.clone(), &headers(&[(USER, "system:serviceaccount:ns:sa")])).unwrap();
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert_eq!(impersonate(admin, &headers(&[(GROUP, "dev")])).unwrap_err().code, 500);
    }
}
