//! Credentials, challenges and tokens. Source: RFC 9110 section 11 (challenges), RFC 7617 (Basic), the distribution
//! project's spec/auth/token.md and oauth.md (Bearer), and containerd's ParseAuth for which credentials go to whom.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderValue, Uri};
use serde::Deserialize;

/// Seconds that a token lives where its issuer does not say.
const TOKEN_LIFE: u64 = 60;
/// A token is not used in its last seconds: it could end under way.
const MARGIN: Duration = Duration::from_secs(5);

/// What the kubelet says about who pulls. Never shown.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// Base64 of `USER:PASSWORD`, where there is no username.
    pub auth: String,
    /// Where set, the one host to which the rest may be told.
    pub server_address: String,
    /// Exchanged for an access token.
    pub identity_token: String,
    /// Sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// What may be told to one host. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password { username: String, password: String },
    Identity(String),
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::Identity(_) => "Identity",
            Self::Token(_) => "Token",
        })
    }
}

/// The pull secret cannot be read. It is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credentials cannot be read: auth is not base64 of USER:PASSWORD; check the pull secret")]
pub struct AuthError;

impl Auth {
    /// What of it may be told to `host` (HOST or HOST:PORT).
    ///
    /// # Errors
    /// Where it is to be told and cannot be read.
    pub fn for_host(&self, host: &str) -> Result<Option<Credentials>, AuthError> {
        if !self.server_address.is_empty() && server_host(&self.server_address) != host {
            return Ok(None);
        }
        if !self.username.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Credentials::Password { username, password }));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Credentials::Identity(self.identity_token.clone())));
        }
        if !self.auth.is_empty() {
            let plain = STANDARD_NO_PAD.decode(self.auth.trim().trim_end_matches('=')).map_err(|_| AuthError)?;
            let plain = String::from_utf8(plain).map_err(|_| AuthError)?;
            let (username, password) = plain.split_once(':').ok_or(AuthError)?;
            let password = password.trim_matches('\0').to_owned();
            return Ok(Some(Credentials::Password { username: username.to_owned(), password }));
        }
        let token = (!self.registry_token.is_empty()).then(|| Credentials::Token(self.registry_token.clone()));
        Ok(token)
    }
}

fn server_host(address: &str) -> &str {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    host.split(['/', '?', '#']).next().unwrap_or_default()
}

impl Credentials {
    /// Whether `text` holds one of the secrets: it must not be shown then.
    pub fn appear_in(&self, text: &str) -> bool {
        match self {
            Self::Password { password: secret, .. } | Self::Identity(secret) | Self::Token(secret) => {
                !secret.is_empty() && text.contains(secret.as_str())
            }
        }
    }

    /// For `Authorization` by the Basic scheme.
    pub fn basic(&self) -> Option<HeaderValue> {
        match self {
            Self::Password { username, password } => {
                secret(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            Self::Identity(_) | Self::Token(_) => None,
        }
    }
}

/// A header's value that no log shows.
pub fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a server wants before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case.
    pub scheme: String,
    /// Keys in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// The challenges of a `WWW-Authenticate` header. What cannot be read ends the list.
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return challenges;
        }
        let (word, after) = rest.split_at(end);
        match after.trim_start().strip_prefix('=') {
            Some(value) if !challenges.is_empty() => {
                let Some((value, after)) = parameter(value.trim_start()) else { return challenges };
                if let Some(challenge) = challenges.last_mut() {
                    challenge.parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = after;
            }
            _ => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: BTreeMap::new() });
                rest = after;
            }
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// How to get a token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRequest {
    pub uri: Uri,
    pub authorization: Option<HeaderValue>,
    /// A form that is posted; none for a GET.
    pub form: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("its challenge names no realm where a token is to be had")]
    NoRealm,
    #[error("its challenge sends us to \"{0}\" for a token, which is no address")]
    Realm(String),
    #[error("it wants the credentials sent to {0} unencrypted, which is refused")]
    Unencrypted(String),
    #[error("the issuer of tokens answered with none")]
    NoToken,
}

/// The request for a token that answers a Bearer challenge. `encrypted` says that the challenge came over TLS: then
/// credentials do not leave without. `path` is the repository.
///
/// # Errors
/// Where the challenge cannot be answered.
pub fn token_request(
    challenge: &Challenge,
    credentials: Option<&Credentials>,
    path: &str,
    encrypted: bool,
) -> Result<TokenRequest, TokenError> {
    let realm = challenge.parameters.get("realm").filter(|realm| !realm.is_empty()).ok_or(TokenError::NoRealm)?;
    let wrong = || TokenError::Realm(realm.chars().take(200).collect());
    let base: Uri = realm.parse().map_err(|_| wrong())?;
    let (scheme, authority) = (base.scheme_str().ok_or_else(wrong)?, base.authority().ok_or_else(wrong)?);
    if !matches!(scheme, "http" | "https") || authority.as_str().contains('@') {
        return Err(wrong());
    }
    if credentials.is_some() && encrypted && scheme != "https" {
        return Err(TokenError::Unencrypted(authority.to_string()));
    }
    let scope = challenge.parameters.get("scope").cloned().unwrap_or_else(|| format!("repository:{path}:pull"));
    let service = challenge.parameters.get("service").map(String::as_str);
    let fields = || {
        let mut fields = form_urlencoded::Serializer::new(String::new());
        fields.extend_pairs(service.map(|service| ("service", service)));
        fields.append_pair("scope", &scope);
        fields
    };
    if let Some(Credentials::Identity(token)) = credentials {
        let mut form = fields();
        form.append_pair("client_id", "bosun").append_pair("grant_type", "refresh_token");
        form.append_pair("refresh_token", token);
        return Ok(TokenRequest { uri: base, authorization: None, form: Some(form.finish()) });
    }
    let mut query = fields();
    if let Some(Credentials::Password { username, .. }) = credentials {
        query.append_pair("account", username);
    }
    let separator = if base.query().is_some() { '&' } else { '?' };
    let uri = format!("{base}{separator}{}", query.finish()).parse().map_err(|_| wrong())?;
    Ok(TokenRequest { uri, authorization: credentials.and_then(Credentials::basic), form: None })
}

/// The same by the other way, for issuers that take passwords only in a form.
pub fn password_form(request: &TokenRequest, credentials: &Credentials) -> Option<TokenRequest> {
    let (Credentials::Password { username, password }, None) = (credentials, &request.form) else { return None };
    let mut form = form_urlencoded::Serializer::new(request.uri.query().unwrap_or_default().to_owned());
    form.append_pair("client_id", "bosun").append_pair("grant_type", "password");
    form.append_pair("username", username).append_pair("password", password);
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(request.uri.path().parse().ok()?);
    Some(TokenRequest { uri: Uri::from_parts(parts).ok()?, authorization: None, form: Some(form.finish()) })
}

/// What is sent along, until it ends.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorization {
    pub header: HeaderValue,
    /// None: it does not end.
    pub expires: Option<Instant>,
}

impl Authorization {
    pub fn lives(&self, now: Instant) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

/// Reads the answer of an issuer of tokens.
///
/// # Errors
/// Where it holds no token.
pub fn token_answer(bytes: &[u8], now: Instant) -> Result<Authorization, TokenError> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).map_err(|_| TokenError::NoToken)?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(TokenError::NoToken);
    }
    let header = secret(format!("Bearer {token}")).ok_or(TokenError::NoToken)?;
    let life = Duration::from_secs(answer.expires_in.unwrap_or(TOKEN_LIFE).min(7 * 24 * 3600));
    Ok(Authorization { header, expires: Some(now + life.saturating_sub(MARGIN)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn password(username: &str, password: &str) -> Credentials {
        Credentials::Password { username: username.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn each_form_of_credentials_is_read() {
        let auth = |auth: &str| Auth { auth: auth.to_owned(), ..Auth::default() };
        let of = |auth: &Auth| auth.for_host("a.b:5000");
        assert_eq!(of(&Auth::default()), Ok(None));
        let full = Auth { username: "u".into(), password: "p".into(), identity_token: "i".into(), ..auth("eDp5") };
        assert_eq!(of(&full), Ok(Some(password("u", "p"))));
        assert_eq!(of(&auth("eDp5")), Ok(Some(password("x", "y"))));
        assert_eq!(of(&auth(&STANDARD.encode("x:y:z\0\0"))), Ok(Some(password("x", "y:z"))));
        assert_eq!(of(&auth("!")), Err(AuthError));
        assert_eq!(of(&auth(&STANDARD.encode("none"))), Err(AuthError));
        let identity = Auth { identity_token: "i".into(), ..Auth::default() };
        assert_eq!(of(&identity), Ok(Some(Credentials::Identity("i".into()))));
        let token = Auth { registry_token: "t".into(), ..Auth::default() };
        assert_eq!(of(&token), Ok(Some(Credentials::Token("t".into()))));
    }

    #[test]
    fn credentials_go_only_to_the_server_they_are_for() {
        let auth = |server: &str| Auth {
            username: "u".into(),
            password: "p".into(),
            server_address: server.to_owned(),
            ..Auth::default()
        };
        for server in ["", "a.b:5000", "https://a.b:5000", "https://a.b:5000/v1/"] {
            assert!(auth(server).for_host("a.b:5000").unwrap().is_some(), "{server}");
        }
        assert_eq!(auth("https://other").for_host("a.b:5000"), Ok(None));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let auth = Auth { username: "u".into(), password: "hunter2".into(), ..Auth::default() };
        let credentials = auth.for_host("a").unwrap().unwrap();
        let authorization = credentials.basic().unwrap();
        let shown = format!("{auth:?} {credentials:?} {authorization:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
        assert!(credentials.appear_in("you sent hunter2") && !credentials.appear_in("denied"));
    }

    #[test]
    fn challenges_are_read_as_rfc_9110_writes_them() {
        let header = r#"Basic realm="a \"b\", c", Bearer realm="https://auth.x/token",service="reg, x" , scope=plain , Negotiate"#;
        let read = challenges(header);
        let schemes: Vec<_> = read.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate"]);
        assert_eq!(read[0].parameters["realm"], "a \"b\", c");
        assert_eq!(read[1].parameters["service"], "reg, x");
        assert_eq!(read[1].parameters["scope"], "plain");
        assert_eq!(challenges(""), []);
        assert_eq!(challenges("Bearer realm=\"open").len(), 1);
    }

    fn bearer(parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: "bearer".to_owned(), parameters }
    }

    #[test]
    fn a_token_is_asked_for_by_get_or_with_a_refresh_token_by_post() {
        let challenge = bearer(&[("realm", "https://auth.x/token?a=b"), ("service", "reg x")]);
        let anonymous = token_request(&challenge, None, "lib/x", true).unwrap();
        assert_eq!(
            anonymous.uri.to_string(),
            "https://auth.x/token?a=b&service=reg+x&scope=repository%3Alib%2Fx%3Apull"
        );
        assert_eq!((anonymous.authorization, anonymous.form), (None, None));
        let known = token_request(&challenge, Some(&password("u", "p")), "lib/x", true).unwrap();
        assert!(known.uri.query().unwrap().ends_with("&account=u"));
        assert_eq!(known.authorization.as_ref().unwrap(), "Basic dTpw");
        let form = password_form(&known, &password("u", "p")).unwrap();
        assert_eq!(form.uri.to_string(), "https://auth.x/token");
        assert!(form.form.unwrap().ends_with("&grant_type=password&username=u&password=p"));
        let identity = token_request(&challenge, Some(&Credentials::Identity("i".into())), "lib/x", true).unwrap();
        assert_eq!(identity.uri.to_string(), "https://auth.x/token?a=b");
        assert!(identity.form.unwrap().ends_with("&grant_type=refresh_token&refresh_token=i"));
    }

    #[test]
    fn a_challenge_cannot_lead_credentials_into_the_open() {
        let ask = |realm: &str, credentials: Option<&Credentials>, encrypted| {
            token_request(&bearer(&[("realm", realm)]), credentials, "x", encrypted)
                .map(|request| request.uri.to_string())
        };
        let own = password("u", "p");
        assert_eq!(ask("http://x/t", Some(&own), true), Err(TokenError::Unencrypted("x".to_owned())));
        assert!(ask("http://x/t", None, true).is_ok());
        assert!(ask("http://x/t", Some(&own), false).is_ok());
        for realm in ["/token", "ftp://x/t", "https://u:p@x/t", "not an address"] {
            assert_eq!(ask(realm, None, true), Err(TokenError::Realm(realm.to_owned())));
        }
        assert_eq!(ask("", None, true), Err(TokenError::NoRealm));
    }

    #[test]
    fn a_token_ends_a_little_before_its_time() {
        let now = Instant::now();
        let read = |text: &str| token_answer(text.as_bytes(), now);
        let Ok(short) = read(r#"{"access_token":"a","expires_in":65}"#) else { panic!("no token") };
        assert_eq!(short.header, "Bearer a");
        assert!(short.lives(now + Duration::from_secs(59)) && !short.lives(now + Duration::from_secs(60)));
        let Ok(usual) = read(r#"{"token":"t","access_token":"a"}"#) else { panic!("no token") };
        assert_eq!(usual.header, "Bearer t");
        assert!(!usual.lives(now + Duration::from_secs(55)));
        for text in ["{}", "", "{\"token\":\"a\\nb\"}", "[]"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_reader(header in any::<String>()) {
            for challenge in challenges(&header) {
                let _ = token_request(&challenge, None, "x", true);
            }
        }

        #[test]
        fn no_header_that_is_nearly_right_does(header in "(Basic|Bearer|[a-z]{1,5})( [a-z]{1,7}=\"?[a-z:/,\\\\ ]{0,9}\"?,?){0,4}") {
            let read = challenges(&header);
            prop_assert!(!read.is_empty());
        }
    }
}
