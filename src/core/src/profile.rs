//! MIG profile names and the Kubernetes resources that stand for them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What every extended resource for a MIG profile begins with (NVIDIA device plugin, strategy `mixed`).
pub const RESOURCE_PREFIX: &str = "nvidia.com/mig-";

/// A MIG profile's name as NVML spells it: `1g.10gb`, `1g.10gb+me`, `1g.24gb+me.all`, `1g.24gb-me`, `2g.48gb+gfx`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileName(Arc<str>);

/// Why a name is no MIG profile's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a MIG profile name: expected <compute slices>g.<memory>gb, \
     optionally followed by +me, +me.all, +gfx or -me, as in 1g.10gb or 1g.10gb+me"
)]
pub struct InvalidProfileName(pub String);

/// What a profile takes of the GPU's media engines (`nvml.h`, `NVML_GPU_INSTANCE_PROFILE_*_REV1`, `_ALL_ME`, `_NO_ME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// Its share; goes with anything but `All`.
    Share,
    /// `+me`: the one set of media extensions, so at most one on a GPU.
    Extension,
    /// `+me.all`: every media engine, so only `-me` profiles fit beside it.
    All,
    /// `-me`: none.
    None,
}

impl Media {
    /// Whether two slices of one GPU can both have what they ask for.
    pub fn goes_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::None, _)
            | (_, Self::None)
            | (Self::Share, Self::Share | Self::Extension)
            | (Self::Extension, Self::Share) => true,
            (Self::All, _) | (_, Self::All) | (Self::Extension, Self::Extension) => false,
        }
    }
}

/// What the name of a profile begins with that has none here, before NVML's id.
const UNKNOWN: &str = "unknown-";

const ATTRIBUTES: [&str; 4] = ["+me", "+me.all", "+gfx", "-me"];

impl ProfileName {
    /// Stands for a profile that NVML names in no way known here, as a later driver may: its instances take room like any
    /// other, but nobody can ask for it. `id` is NVML's profile id.
    pub fn unknown(id: u32) -> Self {
        Self(format!("{UNKNOWN}{id}").into())
    }

    /// A name as an agent or a controller has written it, perhaps one of a later version: one that is not known here stands
    /// for slices that take room and can be held, but that nobody can ask for.
    pub fn verbatim(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as NVML spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The extended resource that NVIDIA's device plugin uses for it; `+` is not allowed there and becomes `.`.
    pub fn resource(&self) -> String {
        format!("{RESOURCE_PREFIX}{}", self.0.replace('+', "."))
    }

    /// The profile that a resource stands for; `None` when the resource is not about MIG.
    pub fn from_resource(resource: &str) -> Option<Result<Self, InvalidProfileName>> {
        let name = resource.strip_prefix(RESOURCE_PREFIX)?;
        let spelled = match name.split_once("gb.") {
            Some((base, attribute)) => format!("{base}gb+{attribute}"),
            None => name.to_owned(),
        };
        let parsed = if spelled.starts_with(UNKNOWN) { None } else { spelled.parse().ok() };
        Some(parsed.ok_or_else(|| InvalidProfileName(name.to_owned())))
    }

    /// Its memory in GiB, as its name says it: the figure that people know it by, which is the same on every model and needs no
    /// table. What NVML reports is a little less (9728 MiB of a `1g.10gb` of an A100-80GB). `None` for a profile without a name.
    pub fn memory_gib(&self) -> Option<u32> {
        let (sizes, _) = self.0.split_once("gb")?;
        sizes.split_once("g.")?.1.parse().ok()
    }

    /// What the profile takes of the media engines, which its name says.
    pub fn media(&self) -> Media {
        match self.attribute() {
            "+me" => Media::Extension,
            "+me.all" => Media::All,
            "-me" => Media::None,
            _ => Media::Share,
        }
    }

    /// `+me`, `-me` and the like; empty for a plain profile.
    pub fn attribute(&self) -> &str {
        // Asked of every profile for every place that is weighed, and nearly all are plain.
        if self.0.ends_with("gb") {
            return "";
        }
        self.0.split_once("gb").map_or("", |(_, attribute)| attribute)
    }
}

impl FromStr for ProfileName {
    type Err = InvalidProfileName;

    fn from_str(name: &str) -> Result<Self, InvalidProfileName> {
        let digits = |s: &str| !s.is_empty() && s.len() <= 4 && s.bytes().all(|b| b.is_ascii_digit());
        let valid = name.split_once("gb").is_some_and(|(sizes, attribute)| {
            sizes.split_once("g.").is_some_and(|(compute, memory)| digits(compute) && digits(memory))
                && (attribute.is_empty() || ATTRIBUTES.contains(&attribute))
        });
        let unknown = || name.strip_prefix(UNKNOWN).is_some_and(|id| id.parse::<u32>().is_ok());
        if valid || unknown() { Ok(Self(name.into())) } else { Err(InvalidProfileName(name.to_owned())) }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_survives_the_way_through_its_resource() {
        for name in ["1g.10gb", "7g.141gb", "1g.10gb+me", "1g.24gb+me.all", "2g.48gb+gfx", "1g.24gb-me"] {
            let profile: ProfileName = name.parse().unwrap();
            assert_eq!(ProfileName::from_resource(&profile.resource()), Some(Ok(profile)));
        }
        assert_eq!(
            "1g.24gb+me.all".parse::<ProfileName>().unwrap().resource(),
            "nvidia.com/mig-1g.24gb.me.all"
        );
    }

    #[test]
    fn the_name_says_how_much_memory_a_profile_has() {
        let sizes = ["1g.10gb", "7g.141gb", "1g.24gb+me.all", "2g.48gb-me", "1g.5gb"]
            .map(|name| name.parse::<ProfileName>().unwrap().memory_gib());
        assert_eq!(sizes, [Some(10), Some(141), Some(24), Some(48), Some(5)]);
        assert_eq!(ProfileName::unknown(20).memory_gib(), None);
    }

    #[test]
    fn a_profile_without_a_known_name_can_be_reported_and_read_back() {
        let unknown = ProfileName::unknown(20);
        assert_eq!(unknown.as_str(), "unknown-20");
        assert_eq!("unknown-20".parse(), Ok(unknown.clone()));
        assert_eq!((unknown.media(), unknown.attribute()), (Media::Share, ""));
        assert!("unknown-x".parse::<ProfileName>().is_err());
    }

    #[test]
    fn what_is_no_profile_is_refused_with_its_name() {
        assert_eq!(ProfileName::from_resource("nvidia.com/gpu"), None);
        for name in [
            "foo",
            "unknown-20",
            "unknown-",
            "1g",
            "1g.gb",
            "g.5gb",
            "1g.5gb.you",
            "1c.3g.20gb",
            "1g.5gb+me+me",
            "1g.5gb ",
        ] {
            let error = ProfileName::from_resource(&format!("nvidia.com/mig-{name}")).unwrap().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
