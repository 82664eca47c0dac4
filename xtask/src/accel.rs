//! Hardware virtualization where it really works, emulation elsewhere.

use std::fs::{self, OpenOptions};
use std::io;
use std::time::Duration;

use clap::ValueEnum;

use crate::error::{Context, Result};
use crate::image::Image;
use crate::machine::{Ending, Machine};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, by emulation.
    Tcg,
}

/// Which accelerator a person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// KVM where a guest really boots with it, else emulation.
    Auto,
    /// KVM.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Choice {
    /// The accelerator to use.
    pub fn resolve(self, image: &Image) -> Result<Accelerator> {
        match self {
            Self::Kvm => Ok(Accelerator::Kvm),
            Self::Tcg => Ok(Accelerator::Tcg),
            Self::Auto => automatic(image),
        }
    }
}

/// A KVM device may open, take a machine, and never boot it: some hosts offer
/// one without the processor's help. So KVM is used only if the processor has
/// virtualization and a guest was seen to boot. The answer is remembered for
/// as long as the host's kernel runs.
fn automatic(image: &Image) -> Result<Accelerator> {
    let usable = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !usable || !has_virtualization(&processor) {
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let memory = image.cache.join("kvm-boots");
    let (yes, no) = (format!("{}: yes\n", boot.trim()), format!("{}: no\n", boot.trim()));
    let known = fs::read_to_string(&memory).unwrap_or_default();
    let boots = if known == yes {
        true
    } else if known == no {
        false
    } else {
        let boots = probe(image)?;
        fs::write(&memory, if boots { yes } else { no }).context("remembering whether KVM boots")?;
        boots
    };
    Ok(if boots { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn probe(image: &Image) -> Result<bool> {
    let machine =
        Machine::builder(image, Accelerator::Kvm).stdout(Box::new(io::sink())).stderr(Box::new(io::sink())).boot();
    // A QEMU that cannot even start with KVM is an answer too.
    let boots = match machine {
        Ok(mut machine) => machine.wait(Duration::from_secs(20))? == Ending::Exit(0),
        Err(_) => false,
    };
    if !boots {
        eprintln!("xtask: /dev/kvm is there but boots no guest; using emulation");
    }
    Ok(boots)
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_whole_flag() {
        assert!(has_virtualization("flags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\nmodel name: vmx\n"));
    }
}
