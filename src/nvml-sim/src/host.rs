//! What a host with NVIDIA's driver shows in `/dev` and `/proc`, laid out in a folder.
//!
//! NVML says nothing of device numbers: programs that hand MIG devices to containers read them from `/proc`. The tables
//! here are those of a driver with MIG: they list every GPU instance and compute instance that could ever be.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

/// GPU instance ids that the driver gives numbers to, of each GPU.
pub const GPU_INSTANCES: u32 = 15;
/// Compute instance ids that the driver gives numbers to, of each GPU instance.
pub const COMPUTE_INSTANCES: u32 = 8;
/// The major number of `nvidia-caps` on this host. A real one differs from boot to boot.
pub const CAPS_MAJOR: u32 = 236;
/// The major number of `nvidia-uvm` on this host.
pub const UVM_MAJOR: u32 = 235;
/// The major number of NVIDIA's GPUs, the same on every host.
pub const GPU_MAJOR: u32 = 195;

/// The minor number of a GPU instance's capability, as in `/proc/driver/nvidia-caps/mig-minors`; of a compute instance's
/// if one is named. `gpu` is the number of `/dev/nvidia<gpu>`.
pub fn capability_minor(gpu: u32, instance: u32, compute: Option<u32>) -> u32 {
    let of_instance = 3 + gpu * GPU_INSTANCES * (1 + COMPUTE_INSTANCES) + instance * (1 + COMPUTE_INSTANCES);
    of_instance + compute.map_or(0, |compute| 1 + compute)
}

/// Makes `root/dev` and `root/proc` of a host with `gpus` GPUs.
///
/// Device nodes are plain files, so that nobody needs to be root, and the files in `/proc/driver/nvidia/capabilities` say
/// `DeviceFileModify: 0`: whoever makes the nodes in `/dev/nvidia-caps` on a real host is to leave them alone here. Unlike
/// on a real host, those files are there for instances that are not.
pub fn lay_out(root: &Path, gpus: u32) -> io::Result<()> {
    let (dev, proc) = (root.join("dev"), root.join("proc"));
    fs::create_dir_all(dev.join("nvidia-caps"))?;
    for name in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
        fs::write(dev.join(name), "")?;
    }
    for gpu in 0..gpus {
        fs::write(dev.join(format!("nvidia{gpu}")), "")?;
    }
    fs::create_dir_all(proc.join("driver/nvidia-caps"))?;
    let devices = format!(
        "Character devices:\n  1 mem\n  5 /dev/tty\n{GPU_MAJOR} nvidia\n{GPU_MAJOR} nvidiactl\n{UVM_MAJOR} nvidia-uvm\n\
         {CAPS_MAJOR} nvidia-caps\n\nBlock devices:\n  7 loop\n"
    );
    fs::write(proc.join("devices"), devices)?;
    let capabilities = proc.join("driver/nvidia/capabilities");
    let mut minors = String::from("config 1\nmonitor 2\n");
    for gpu in 0..gpus {
        for instance in 0..GPU_INSTANCES {
            let folder = capabilities.join(format!("gpu{gpu}/mig/gi{instance}"));
            let minor = capability_minor(gpu, instance, None);
            attributes(&folder, minor)?;
            let _ = writeln!(minors, "gpu{gpu}/gi{instance}/access {minor}");
            for compute in 0..COMPUTE_INSTANCES {
                let minor = capability_minor(gpu, instance, Some(compute));
                attributes(&folder.join(format!("ci{compute}")), minor)?;
                let _ = writeln!(minors, "gpu{gpu}/gi{instance}/ci{compute}/access {minor}");
            }
        }
    }
    fs::write(proc.join("driver/nvidia-caps/mig-minors"), minors)
}

/// `access` in the folder of a capability: mode 0444 in decimal, as the driver writes it.
fn attributes(folder: &Path, minor: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 0\n");
    fs::write(folder.join("access"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_real_drivers() {
        // As in NVIDIA's tables: the first instances, and the very last entry for 32 GPUs.
        assert_eq!(capability_minor(0, 1, None), 12);
        assert_eq!(capability_minor(0, 1, Some(0)), 13);
        assert_eq!(capability_minor(31, 14, Some(7)), 4322);
    }

    #[test]
    fn the_table_lists_every_instance_once() {
        let root = tempfile::tempdir().unwrap();
        lay_out(root.path(), 2).unwrap();
        let table = fs::read_to_string(root.path().join("proc/driver/nvidia-caps/mig-minors")).unwrap();
        assert_eq!(table.lines().count(), 2 + 2 * 15 * 9);
        let mut minors: Vec<u32> =
            table.lines().map(|l| l.split_once(' ').unwrap().1.parse().unwrap()).collect();
        minors.sort_unstable();
        assert_eq!(minors, (1..=2 + 2 * 15 * 9).collect::<Vec<_>>(), "no gap, no number twice");
        assert!(table.contains("\ngpu1/gi14/ci7/access 272\n"), "{table}");
        let access = root.path().join("proc/driver/nvidia/capabilities/gpu1/mig/gi14/ci7/access");
        assert!(fs::read_to_string(access).unwrap().starts_with("DeviceFileMinor: 272\n"));
        assert!(root.path().join("dev/nvidia1").exists());
    }
}
