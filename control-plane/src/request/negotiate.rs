//! What form the client wants its answer in: the `Accept` header as a value.

use api::status::Status;

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    /// The `Content-Type` of an object.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "application/json" | "application/*" | "*/*" | "text/*" => Some(Self::Json),
            "application/yaml" | "text/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// What is written of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Whole,
    /// `meta.k8s.io` Table; `beta` is v1beta1.
    Table {
        beta: bool,
        include: Include,
    },
    /// `meta.k8s.io` PartialObjectMetadata, or a list of them; `beta` is v1beta1.
    Partial {
        beta: bool,
    },
}

/// The query's `includeObject`: what stands in each row of a Table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub media: Media,
    pub shape: Shape,
    pub pretty: bool,
}

impl Format {
    pub const JSON: Self = Self { media: Media::Json, shape: Shape::Whole, pretty: false };

    /// Whether each object goes out as it is.
    pub fn is_plain_json(self) -> bool {
        self.media == Media::Json && self.shape == Shape::Whole && !self.pretty
    }
}

/// The client's wish, of which the first that can be met counts. An absent header means JSON.
///
/// # Errors
/// 406 where none can be met.
pub fn accept(header: Option<&str>) -> Result<(Media, Shape), Status> {
    let header = header.unwrap_or("*/*");
    let mut ranges: Vec<(f32, (Media, Shape))> =
        header.split(',').filter_map(|range| parse(range).filter(|(quality, _)| *quality > 0.0)).collect();
    // Stable: among equals the client's order decides.
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges.first().map(|(_, format)| *format).ok_or_else(not_acceptable)
}

fn not_acceptable() -> Status {
    Status::not_acceptable(
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf",
    )
}

fn parse(range: &str) -> Option<(f32, (Media, Shape))> {
    let mut parts = range.split(';').map(str::trim);
    let media = Media::parse(&parts.next()?.to_ascii_lowercase())?;
    let (mut quality, mut kind, mut version, mut group) = (1.0, "", "", "");
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name {
            "q" => quality = value.parse().ok()?,
            "as" => kind = value,
            "v" => version = value,
            "g" => group = value,
            _ => {}
        }
    }
    if kind.is_empty() {
        return Some((quality, (media, Shape::Whole)));
    }
    let beta = match (group, version) {
        ("meta.k8s.io", "v1") => false,
        ("meta.k8s.io", "v1beta1") => true,
        _ => return None,
    };
    let shape = match kind {
        "Table" if media != Media::Protobuf => Shape::Table { beta, include: Include::default() },
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Partial { beta },
        _ => return None,
    };
    Some((quality, (media, shape)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wish_that_can_be_met_counts() {
        let table = Shape::Table { beta: false, include: Include::Metadata };
        let cases = [
            (None, (Media::Json, Shape::Whole)),
            (Some("application/vnd.kubernetes.protobuf,application/json"), (Media::Protobuf, Shape::Whole)),
            (Some("application/cbor, application/yaml"), (Media::Yaml, Shape::Whole)),
            (Some("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), (Media::Json, table)),
            (Some("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"), (Media::Json, Shape::Whole)),
            (Some("application/yaml;q=0.5,application/json;q=0.8"), (Media::Json, Shape::Whole)),
            (
                Some("application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
                (Media::Protobuf, Shape::Partial { beta: false }),
            ),
        ];
        for (header, wanted) in cases {
            assert_eq!(accept(header), Ok(wanted), "{header:?}");
        }
        assert_eq!(accept(Some("image/png")).map_err(|s| s.code), Err(406));
    }
}
