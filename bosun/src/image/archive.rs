//! Image archives on their way to containerd: it takes an image's name from one annotation alone, and archives of
//! other tools say it in others or not at all. Source: OCI image specification 1.1, image-layout.md and annotations.md.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use serde_json::Value;

/// The annotation that containerd takes a name from.
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// An index of many platforms and signatures is a few kilobytes.
const INDEX_LIMIT: u64 = 16 << 20;

/// The file's name without what says its format: the image's name where the archive has none.
pub fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = [".tar.gz", ".tgz", ".tar", ".oci"];
    ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
}

/// Copies the archive to `to`, with a full name for each image of an OCI index. Returns the names of all images.
/// An archive that is none gives no name.
///
/// # Errors
/// Where the archive is cut off or `to` takes no more.
pub fn rewrite(from: impl Read, to: &mut dyn Write, stem: &str) -> io::Result<Vec<String>> {
    let mut from = BufReader::new(from);
    let is_gzip = from.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    if is_gzip { copy(flate2::bufread::GzDecoder::new(from), to, stem) } else { copy(from, to, stem) }
}

fn copy(from: impl Read, to: &mut dyn Write, stem: &str) -> io::Result<Vec<String>> {
    let mut archive = tar::Archive::new(from);
    let mut out = tar::Builder::new(to);
    let (mut index_names, mut docker_names) = (Vec::new(), Vec::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
        let mut header = entry.header().clone();
        match path.to_str() {
            Some(name @ ("index.json" | "manifest.json")) => {
                let mut text = Vec::new();
                (&mut entry).take(INDEX_LIMIT).read_to_end(&mut text)?;
                let mut value: Value = serde_json::from_slice(&text).map_err(io::Error::from)?;
                if name == "index.json" {
                    index_names = complete(&mut value, stem);
                    text = value.to_string().into_bytes();
                } else {
                    docker_names = repo_tags(&value);
                }
                header.set_size(text.len() as u64);
                out.append_data(&mut header, &path, text.as_slice())?;
            }
            _ if header.entry_type().is_file() => out.append_data(&mut header, &path, entry)?,
            // Links of Docker's older archives.
            _ => match entry.link_name()? {
                Some(target) => out.append_link(&mut header, &path, target)?,
                None => out.append_data(&mut header, &path, io::empty())?,
            },
        }
    }
    out.finish()?;
    Ok(if index_names.is_empty() { docker_names } else { index_names })
}

/// Gives every manifest of the index its full name, and returns them.
fn complete(index: &mut Value, stem: &str) -> Vec<String> {
    let mut names = Vec::new();
    for manifest in index["manifests"].as_array_mut().into_iter().flatten() {
        let annotation = |name: &str| manifest["annotations"][name].as_str();
        let name = annotation(NAME).map_or_else(|| full_name(annotation(REF_NAME), stem), str::to_owned);
        manifest["annotations"][NAME] = name.clone().into();
        names.push(name);
    }
    names
}

/// A reference as containerd writes it. What is no more than a tag is a tag of the file's name.
fn full_name(reference: Option<&str>, stem: &str) -> String {
    match reference {
        Some(name) if name.contains(['/', ':']) => normalized(name),
        Some(tag) => normalized(&format!("{stem}:{tag}")),
        None => normalized(&format!("{stem}:latest")),
    }
}

/// Docker's rules: a first part without a dot or colon is no host, and a name without one is Docker Hub's.
fn normalized(name: &str) -> String {
    let has_host = name.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let path = match name {
        name if has_host => name.to_owned(),
        name if name.contains('/') => format!("docker.io/{name}"),
        name => format!("docker.io/library/{name}"),
    };
    let last = path.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { path } else { format!("{path}:latest") }
}

fn repo_tags(manifest: &Value) -> Vec<String> {
    let images = manifest.as_array().into_iter().flatten();
    let tags = images.flat_map(|image| image["RepoTags"].as_array().into_iter().flatten());
    tags.filter_map(Value::as_str).map(normalized).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_reads_them() {
        let cases = [
            (Some("v1"), "docker.io/library/app:v1"),
            (None, "docker.io/library/app:latest"),
            (Some("team/app:2"), "docker.io/team/app:2"),
            (Some("localhost:5000/app"), "localhost:5000/app:latest"),
            (Some("r.example/a/b@sha256:00"), "r.example/a/b@sha256:00"),
        ];
        for (reference, wanted) in cases {
            assert_eq!(full_name(reference, "app"), wanted);
        }
        assert_eq!(stem(Path::new("/x/App.tar.gz")), "app");
    }

    #[test]
    fn an_archive_keeps_its_names_and_a_nameless_one_gets_the_files() {
        let mut out = Vec::new();
        assert_eq!(rewrite(images::echo_archive(), &mut out, "x").unwrap(), [images::ECHO]);
        assert_eq!(rewrite(out.as_slice(), &mut io::sink(), "x").unwrap(), [images::ECHO]);
        let mut nameless = tar::Builder::new(Vec::new());
        let text = br#"{"manifests":[{"digest":"sha256:0"}]}"#;
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        nameless.append_data(&mut header, "./index.json", &text[..]).unwrap();
        let nameless = nameless.into_inner().unwrap();
        assert_eq!(rewrite(nameless.as_slice(), &mut io::sink(), "x").unwrap(), ["docker.io/library/x:latest"]);
        assert!(rewrite(&b"no archive at all"[..], &mut io::sink(), "x").is_err());
    }
}
