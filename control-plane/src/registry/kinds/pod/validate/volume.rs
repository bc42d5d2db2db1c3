//! Volumes.

use std::collections::BTreeSet;

use api::names;
use api::quantity::Quantity;
use api::status::FieldError;
use serde_json::Value;

use super::super::super::check;
use super::super::super::object::{list, text};
use super::{container, environment};

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Fields that a downward API file may show beside `metadata.labels` and `metadata.annotations`.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

pub(super) fn volumes(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        errors.extend(source(volume, &path));
        let name = text(volume, "/name");
        match name {
            "" => errors.push(FieldError::required(format!("{path}.name"), "")),
            name => errors.extend(check::by_rule(format!("{path}.name"), name, names::dns_label)),
        }
        if !seen.insert(name) && !name.is_empty() {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    errors
}

fn source(volume: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let sources = volume.as_object().into_iter().flatten().filter(|(key, v)| *key != "name" && !v.is_null());
    for (i, (kind, source)) in sources.enumerate() {
        let path = format!("{path}.{kind}");
        if i > 0 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        match kind.as_str() {
            "emptyDir" => errors.extend(empty_dir(source, &path)),
            "hostPath" => errors.extend(host_path(source, &path)),
            "secret" => errors.extend(files(source, "secretName", &path)),
            "configMap" => errors.extend(files(source, "name", &path)),
            "downwardAPI" => {
                errors.extend(mode(source, "defaultMode", &path));
                errors.extend(downward(source, &path));
            }
            "projected" => errors.extend(projected(source, &path)),
            "persistentVolumeClaim" if text(source, "/claimName").is_empty() => {
                errors.push(FieldError::required(format!("{path}.claimName"), ""));
            }
            _ => {}
        }
    }
    errors
}

fn empty_dir(source: &Value, path: &str) -> Vec<FieldError> {
    let limit = text(source, "/sizeLimit");
    let negative = limit.parse::<Quantity>().is_ok_and(Quantity::is_negative);
    let why = "SizeLimit field must be a valid resource quantity";
    negative.then(|| FieldError::forbidden(format!("{path}.sizeLimit"), why)).into_iter().collect()
}

fn host_path(source: &Value, path: &str) -> Vec<FieldError> {
    let target = text(source, "/path");
    if target.is_empty() {
        return vec![FieldError::required(format!("{path}.path"), "")];
    }
    let mut errors = Vec::new();
    if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(format!("{path}.path"), target, "must not contain '..'"));
    }
    errors.extend(check::one_of(format!("{path}.type"), text(source, "/type"), HOST_PATH_TYPES));
    errors
}

/// A secret or a config map. `name` is the field that names it.
fn files(source: &Value, name: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if source[name].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{path}.{name}"), ""));
    }
    errors.extend(mode(source, "defaultMode", path));
    for (i, item) in list(source, "/items").iter().enumerate() {
        errors.extend(key_to_path(item, &format!("{path}.items[{i}]")));
    }
    errors
}

fn mode(object: &Value, field: &str, path: &str) -> Option<FieldError> {
    let mode = object[field].as_i64().filter(|mode| !(0..=0o777).contains(mode))?;
    Some(FieldError::invalid(format!("{path}.{field}"), mode, FILE_MODE))
}

fn key_to_path(item: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["key", "path"] {
        if item[field].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    }
    errors.extend(file_path(&format!("{path}.path"), text(item, "/path")));
    errors.extend(mode(item, "mode", path));
    errors
}

/// Names that begin with two dots are those of the atomic writer.
fn file_path(field: &str, path: &str) -> Vec<FieldError> {
    let mut errors = container::descending(field, path);
    if path.starts_with("..") && !path.starts_with("../") && path != ".." {
        errors.push(FieldError::invalid(field, path, "must not start with '..'"));
    }
    errors
}

fn downward(source: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for item in list(source, "/items") {
        match text(item, "/path") {
            "" => errors.push(FieldError::required(format!("{path}.path"), "")),
            file => errors.extend(file_path(&format!("{path}.path"), file)),
        }
        match (item["fieldRef"].is_null(), item["resourceFieldRef"].is_null()) {
            (false, true) => {
                errors.extend(environment::field(&item["fieldRef"], &format!("{path}.fieldRef"), FILE_FIELDS));
            }
            (true, false) => {
                let path = format!("{path}.resourceFieldRef");
                if text(&item["resourceFieldRef"], "/containerName").is_empty() {
                    errors.push(FieldError::required(format!("{path}.containerName"), ""));
                }
                errors.extend(environment::resource(&item["resourceFieldRef"], &path));
            }
            (false, false) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(path, "resource", why));
            }
            (true, true) => {
                let why = "one of fieldRef and resourceFieldRef is required";
                errors.push(FieldError::required(path, why));
            }
        }
        errors.extend(mode(item, "mode", path));
    }
    errors
}

fn projected(source: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::from_iter(mode(source, "defaultMode", path));
    for (i, source) in list(source, "/sources").iter().enumerate() {
        let at = format!("{path}.sources[{i}]");
        let set = source.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
        for (count, (kind, projection)) in set.enumerate() {
            let at = format!("{at}.{kind}");
            if count > 0 {
                errors.push(FieldError::forbidden(at, "may not specify more than 1 volume type"));
                continue;
            }
            match kind.as_str() {
                "secret" | "configMap" => errors.extend(files(projection, "name", &at)),
                "downwardAPI" => errors.extend(downward(projection, &at)),
                "serviceAccountToken" => errors.extend(token(projection, path, &at)),
                _ => {}
            }
        }
    }
    errors
}

/// `path` is that of the volume's source, where the API shows the file's fault; `at` that of the projection.
fn token(projection: &Value, path: &str, at: &str) -> Vec<FieldError> {
    let field = format!("{at}.expirationSeconds");
    let mut errors = Vec::new();
    match projection["expirationSeconds"].as_i64() {
        None => errors.push(FieldError::required(field, "")),
        Some(seconds) if seconds < 600 => {
            errors.push(FieldError::invalid(field, seconds, "may not specify a duration less than 10 minutes"));
        }
        Some(seconds) if seconds > 1 << 32 => {
            errors.push(FieldError::invalid(field, seconds, "may not specify a duration larger than 2^32 seconds"));
        }
        Some(_) => {}
    }
    match text(projection, "/path") {
        "" => errors.push(FieldError::required(format!("{path}.path"), "")),
        file => errors.extend(file_path(&format!("{path}.path"), file)),
    }
    errors
}
