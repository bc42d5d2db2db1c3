//! HTTP: from a request's path, headers and body to a verb, and from its result to an answer.

mod body;
mod discovery;
mod encode;
mod health;
mod list;
mod metrics;
pub mod negotiate;
mod openapi;
mod path;
mod query;
mod read;
mod store;
mod streaming;
mod table;
#[cfg(test)]
mod tests;
mod watching;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::status::Status;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;

pub use body::full;
pub use metrics::Metrics;
pub use negotiate::{Format, Include, Media, Shape};

use crate::identity::{Attributes, User};
use crate::ports::{Body, ConnectRequest, Decision, Peer};
use crate::registry::{Registry, Resource, Subresource};
use crate::server::Server;
use crate::watch::Selection;
use path::{Place, Route};
use query::Query;

/// How long an answer that is no stream may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Every reader of a request's head over the same text, for whoever throws text at them.
pub fn read_any(registry: &Registry, target: &str, accepts: &str) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = Query::parse(Some(query));
    let _ = (query.include(), query.write("Pod"), query.number("limit"), negotiate::accept(Some(accepts)));
    if let (Route::Object(place), Ok(asked)) = (path::route(registry, path), query.list()) {
        let _ = list::Token::decode(&asked.token);
        let _ = Selection::parse(place.resource, String::new(), &asked.label_selector, &asked.field_selector);
    }
}

/// A request, understood and allowed.
struct Asked<'a> {
    server: &'a Arc<Server>,
    user: User,
    head: Parts,
    query: Query,
}

/// Answers a request. Failures are answers, too.
pub fn serve(server: Arc<Server>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
    Box::pin(timed(server, request))
}

async fn timed(server: Arc<Server>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    let route = path::route(&server.registry, head.uri.path());
    let query = Query::parse(head.uri.query());
    let attributes = attributes(&route, &head, &query);
    let media = negotiate::accept(text(&head, header::ACCEPT)).map_or(Media::Json, |(media, _)| media);
    let long = attributes.verb == "watch" || is_stream(&route);
    let label = (attributes.verb.clone(), attributes.resource.clone(), attributes.subresource.clone());
    let answer = answer(&server, head, body, (route, query, attributes));
    let result = if long {
        answer.await
    } else {
        let Ok(_permit) = server.in_flight.try_acquire() else {
            let status = Status::too_many_requests("Too many requests, please try again later.");
            return body::failure(media, &status);
        };
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(result) => result,
            Err(_) => Err(Status::new(504, "Timeout", "Timeout: request did not complete within requested timeout")),
        }
    };
    let response = result.unwrap_or_else(|status| body::failure(media, &status));
    server.metrics.observe(label, response.status().as_u16(), started.elapsed());
    response
}

async fn answer(
    server: &Arc<Server>,
    head: Parts,
    body: Body,
    (route, query, attributes): (Route, Query, Attributes),
) -> Result<Response<Body>, Status> {
    let user = authenticate(server, &head, &route).await?;
    if let Decision::Deny(reason) = server.ports.authorizer.authorize(server, &user, &attributes).await {
        return Err(crate::authz::forbidden(&user, &attributes, &reason));
    }
    let asked = Asked { server, user, head, query };
    match route {
        Route::Object(place) => {
            let warning = deprecation(place.resource);
            let mut response = object(asked, place, body).await?;
            if let Some(warning) = warning {
                response.headers_mut().append(header::WARNING, header::HeaderValue::from_static(warning));
            }
            Ok(response)
        }
        Route::CoreVersions => discovery::core_versions(&asked),
        Route::Groups => discovery::groups(&asked),
        Route::Group(group) => discovery::group(&asked, &group),
        Route::Version { group, version } => discovery::version(&asked, &group, &version),
        Route::CustomResources if asked.head.method == Method::GET => Ok(discovery::custom_resources(&asked)),
        Route::OpenApiV2 => openapi::document_v2(&asked),
        Route::OpenApiIndex => openapi::index(&asked),
        Route::OpenApi(path) => openapi::document(&asked, &path),
        Route::Health { endpoint, check } => Ok(health::answer(&asked, endpoint, &check).await),
        Route::ServerVersion => Ok(body::answer(200, "application/json", health::version())),
        Route::Store => store::answer(&asked, body).await,
        Route::Metrics => metrics::answer(server),
        Route::Root => discovery::root(&asked),
        Route::Unknown | Route::CustomResources => match server.ports.answerer.published(server, asked.head.uri.path())
        {
            Some((content_type, document)) => Ok(body::answer(200, content_type, document.to_string())),
            None => Err(Status::new(404, "NotFound", "the server could not find the requested resource")),
        },
    }
}

/// What clients are told who use a kind that has a successor.
fn deprecation(resource: &Resource) -> Option<&'static str> {
    match (resource.group, resource.plural) {
        ("", "endpoints") => {
            Some(r#"299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#)
        }
        _ => None,
    }
}

/// Whoever shows nothing is told so, but for what a load balancer asks.
async fn authenticate(server: &Server, head: &Parts, route: &Route) -> Result<User, Status> {
    let peer = head.extensions.get::<Peer>();
    if let Some(mut user) = server.ports.authenticator.authenticate(server, head, peer).await? {
        if !user.in_group("system:authenticated") && user.name != "system:anonymous" {
            user.groups.push("system:authenticated".into());
        }
        return Ok(user);
    }
    match route {
        Route::Health { .. } | Route::ServerVersion => Ok(User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        }),
        _ => Err(Status::unauthorized()),
    }
}

/// What the authorizer is asked.
fn attributes(route: &Route, head: &Parts, query: &Query) -> Attributes {
    let path = head.uri.path().to_owned();
    let Route::Object(place) = route else {
        return Attributes { verb: head.method.as_str().to_ascii_lowercase(), path, ..Attributes::default() };
    };
    let collection = place.name.is_empty();
    let watch = query.flag("watch").unwrap_or(false);
    let verb = match (&head.method, place.subresource) {
        (_, Some(Subresource::Exec | Subresource::Attach | Subresource::PortForward)) => "create",
        (&Method::GET | &Method::HEAD, None) if collection && watch => "watch",
        (&Method::GET | &Method::HEAD, None) if collection => "list",
        (&Method::GET | &Method::HEAD, _) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) if collection => "deletecollection",
        (&Method::DELETE, _) => "delete",
        _ => "",
    };
    let named = api::fields::Selector::parse(query.get("fieldSelector")).ok();
    let named = named.and_then(|s| s.required("metadata.name").map(str::to_owned)).filter(|_| collection);
    Attributes {
        verb: verb.into(),
        group: place.resource.group.into(),
        version: place.resource.version.into(),
        resource: place.resource.plural.into(),
        subresource: place.subresource.map_or(String::new(), |s| s.path().into()),
        // A namespace is within itself, for those who may act in it alone.
        namespace: match (place.resource.group, place.resource.plural) {
            ("", "namespaces") => place.name.clone(),
            _ => place.namespace.clone(),
        },
        name: named.unwrap_or_else(|| place.name.clone()),
        path,
    }
}

fn is_stream(route: &Route) -> bool {
    matches!(route, Route::Object(place) if place.subresource.is_some_and(Subresource::is_connect))
}

fn text(head: &Parts, name: header::HeaderName) -> Option<&str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

async fn object(asked: Asked<'_>, place: Place, body: Body) -> Result<Response<Body>, Status> {
    if let Some(subresource) = place.subresource.filter(|s| s.is_connect()) {
        let request = ConnectRequest {
            user: asked.user,
            resource: place.resource,
            subresource,
            namespace: place.namespace,
            name: place.name,
            rest: place.rest,
            request: Request::from_parts(asked.head, body),
        };
        return asked.server.ports.connector.connect(asked.server, request).await;
    }
    let collection = place.name.is_empty();
    match &asked.head.method {
        &Method::POST if collection || place.subresource.is_some() => write::create(asked, place, body).await,
        _ if place.resource.virtual_only => Err(Status::method_not_allowed()),
        &Method::GET | &Method::HEAD if collection => read::collection(asked, place).await,
        &Method::GET | &Method::HEAD => read::one(asked, place).await,
        &Method::PUT if !collection => write::update(asked, place, body).await,
        &Method::PATCH if !collection => write::patch(asked, place, body).await,
        &Method::DELETE if collection => write::delete_collection(asked, place, body).await,
        &Method::DELETE if place.subresource.is_none() => write::delete(asked, place, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

impl Asked<'_> {
    /// The form in which the client wants its answer.
    fn format(&self) -> Result<Format, Status> {
        let (media, mut shape) = negotiate::accept(text(&self.head, header::ACCEPT))?;
        if let Shape::Table { include, .. } = &mut shape {
            *include = self.query.include()?;
        }
        Ok(Format { media, shape, pretty: self.query.pretty() })
    }
}

/// Hands a body on as the type that all bodies have here.
pub fn boxed<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<crate::ports::BodyError>,
{
    body.map_err(Into::into).boxed_unsync()
}
