//! Names of CDI devices.
//!
//! A name says the place of a slice and not which instance is there: the kubelet answers a container's restart out of its
//! checkpoint, and the name in it must lead to a slice that had to be made again at the same place, with another UUID.

use slicegate_core::id::GpuUuid;
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

/// The kind of our CDI devices: vendor and class.
pub const KIND: &str = "slicegate.dev/mig";
/// The device that every container with a slice is given besides: what does not depend on the slice.
pub const DRIVER: &str = "slicegate.dev/mig=driver";

/// The name of [`DRIVER`] within the kind.
pub(super) const DRIVER_DEVICE: &str = "driver";

/// Where a slice is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// Its profile.
    pub profile: ProfileName,
    /// Its first placement unit.
    pub start: u8,
}

/// The name of a slice within the kind. CDI allows letters, digits, `_ - . :` between a letter and a letter or digit, so the
/// `+` of a profile becomes `.`, as in the resource's name.
pub(super) fn device(gpu: &GpuUuid, profile: &ProfileName, start: u8) -> String {
    let resource = profile.resource();
    let spelled = resource.strip_prefix(RESOURCE_PREFIX).unwrap_or(&resource);
    format!("{gpu}_{spelled}_{start}")
}

/// The fully qualified name of a slice: what a container runtime is given.
pub fn qualified(gpu: &GpuUuid, profile: &ProfileName, start: u8) -> String {
    format!("{KIND}={}", device(gpu, profile, start))
}

/// The place that a fully qualified name speaks of; `None` for other vendors' devices and for [`DRIVER`].
pub fn parse(qualified: &str) -> Option<Place> {
    let device = qualified.strip_prefix(KIND)?.strip_prefix('=')?;
    let (rest, start) = device.rsplit_once('_')?;
    let (gpu, spelled) = rest.rsplit_once('_')?;
    let profile = ProfileName::from_resource(&format!("{RESOURCE_PREFIX}{spelled}"))?.ok()?;
    let place = Place { gpu: gpu.into(), profile, start: start.parse().ok()? };
    // One name for a place: nothing is to be found under `+3` or `03` that is not there under `3`.
    (!gpu.is_empty() && self::qualified(&place.gpu, &place.profile, place.start) == qualified)
        .then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CDI's grammar of device names (container-device-interface, `pkg/parser`, `ValidateDeviceName`).
    fn is_cdi_device_name(name: &str) -> bool {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(name.chars().next())
            && ends(name.chars().last())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
    }

    const GPU: &str = "GPU-5c89b2a8-3b3a-4f0e-9d1c-1a2b3c4d5e6f";

    #[test]
    fn every_profile_of_every_model_keeps_its_place_through_its_name() {
        let gpu = GpuUuid::from(GPU);
        let (mut names, mut seen) = (0, std::collections::BTreeSet::new());
        for model in nvml_sim::tables::models().unwrap() {
            let Ok(model) = nvml_sim::tables::model(model) else { continue };
            for profile in &model.profiles {
                for start in 0..16 {
                    let profile: ProfileName = profile.name.parse().unwrap();
                    let name = qualified(&gpu, &profile, start);
                    assert!(is_cdi_device_name(name.strip_prefix("slicegate.dev/mig=").unwrap()), "{name}");
                    let place = Place { gpu: gpu.clone(), profile: profile.clone(), start };
                    assert_eq!(parse(&name), Some(place), "{name}");
                    names += usize::from(seen.insert((profile, start)));
                }
            }
        }
        let distinct: std::collections::BTreeSet<_> =
            seen.iter().map(|(profile, start)| qualified(&gpu, profile, *start)).collect();
        assert_eq!(distinct.len(), names, "two places have one name");
        let attributes: std::collections::BTreeSet<_> = seen.iter().map(|(p, _)| p.attribute()).collect();
        assert_eq!(attributes, ["", "+gfx", "+me", "+me.all", "-me"].into(), "tables without all spellings");
    }

    #[test]
    fn a_name_is_spelled_as_documented() {
        let gpu = GpuUuid::from(GPU);
        let name = |profile: &str| qualified(&gpu, &profile.parse().unwrap(), 3);
        assert_eq!(name("1g.10gb+me"), format!("slicegate.dev/mig={GPU}_1g.10gb.me_3"));
        assert_eq!(name("1g.24gb-me"), format!("slicegate.dev/mig={GPU}_1g.24gb-me_3"));
    }

    #[test]
    fn what_is_no_slice_of_ours_has_no_place() {
        for name in [
            DRIVER,
            "nvidia.com/gpu=0",
            "slicegate.dev/mig",
            "slicegate.dev/migs=GPU-1_1g.10gb_0",
            "slicegate.dev/mig=GPU-1_1g.10gb",
            "slicegate.dev/mig=GPU-1_1g.10gb_",
            "slicegate.dev/mig=GPU-1_1g.10gb_256",
            "slicegate.dev/mig=GPU-1_1g.10gb_+3",
            "slicegate.dev/mig=GPU-1_1g.10gb_03",
            "slicegate.dev/mig=GPU-1_1g.10gb+me_3",
            "slicegate.dev/mig=_1g.10gb_3",
            "slicegate.dev/mig=GPU-1_whole_3",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert!(parse("slicegate.dev/mig=GPU-1_1g.10gb_3").is_some());
    }

    #[test]
    fn the_driver_device_belongs_to_the_kind() {
        assert_eq!(DRIVER, format!("{KIND}={DRIVER_DEVICE}"));
    }
}
