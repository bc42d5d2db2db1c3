//! Which of an index's images fits this machine. Source: OCI image specification 1.1, image-index.md, and containerd's
//! platforms package for what a processor runs besides its own.

use serde::Deserialize;

/// A platform as an index names it, with Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `other` runs here: smaller is better, none is not at all.
    pub fn rank(&self, other: &Self) -> Option<u8> {
        if !self.os.eq_ignore_ascii_case(&other.os) {
            return None;
        }
        let (own, own_variant) = canonical(&self.architecture, self.variant.as_deref());
        let (theirs, their_variant) = canonical(&other.architecture, other.variant.as_deref());
        match (own.as_str(), theirs.as_str()) {
            ("arm", "arm") => older(&own_variant, &their_variant),
            // A 64-bit processor runs 32-bit programs, but its own first.
            ("arm64", "arm") => older("v8", &their_variant).map(|rank| rank + 100),
            ("amd64" | "arm64", _) if own == theirs => older(&own_variant, &their_variant),
            _ => (own == theirs && own_variant == their_variant).then_some(0),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().filter(|variant| !variant.is_empty()).try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Common other names, and the variant that is meant where none is said.
fn canonical(architecture: &str, variant: Option<&str>) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.unwrap_or_default().to_ascii_lowercase();
    let variant = variant.strip_prefix('v').unwrap_or(&variant);
    let (architecture, default) = match architecture.as_str() {
        "x86_64" | "x86-64" | "amd64" => ("amd64", "1"),
        "aarch64" | "arm64" => ("arm64", "8"),
        "armhf" => ("arm", "7"),
        "armel" => ("arm", "6"),
        "arm" => ("arm", "7"),
        "i386" | "386" => ("386", ""),
        other => (other, ""),
    };
    (architecture.to_owned(), format!("v{}", if variant.is_empty() { default } else { variant }))
}

/// A processor runs the variants before its own; the nearest is best.
fn older(own: &str, theirs: &str) -> Option<u8> {
    let number = |variant: &str| variant.strip_prefix('v')?.split('.').next()?.parse::<u8>().ok();
    number(own)?.checked_sub(number(theirs)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next();
        Platform { os: next().unwrap(), architecture: next().unwrap(), variant: next() }
    }

    fn rank(host: &str, image: &str) -> Option<u8> {
        platform(host).rank(&platform(image))
    }

    #[test]
    fn the_nearest_that_runs_is_best() {
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/x86_64/v1"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/amd64", "unknown/unknown"), None);
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/arm64", "linux/arm/v7"), Some(101));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v6"), Some(1));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/riscv64", "linux/riscv64"), Some(0));
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
    }

    #[test]
    fn this_machine_runs_its_own() {
        assert_eq!(Platform::host().rank(&Platform::host()), Some(0));
    }
}
