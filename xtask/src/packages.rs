//! The Debian packages a chore needs, installed when they are missing.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

/// Installed packages and their versions, as dpkg knows them.
pub fn installed() -> Result<BTreeMap<String, String>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n"])
        .output()
        .context("dpkg-query did not run (a Debian or Ubuntu host with apt is needed)")?;
    if !output.status.success() {
        return Err(Error::new(format!("dpkg-query failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    Ok(parse_installed(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_installed(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let status = fields.next()?;
            let package = fields.next()?;
            let version = fields.next()?;
            // "ii ": wanted installed, and is.
            (status.as_bytes().get(1) == Some(&b'i')).then(|| (package.to_owned(), version.to_owned()))
        })
        .collect()
}

/// Makes sure that `wanted` are installed, and says so when it had to act.
///
/// Without root it changes nothing: the error names the packages and the
/// command that installs them.
pub fn ensure(wanted: &[&str]) -> Result<()> {
    let installed = installed()?;
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !installed.contains_key(*package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_root() {
        return Err(Error::new(format!(
            "missing Debian packages: {names}\n\
             install them with: sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {names}"
        )));
    }
    eprintln!("xtask: installing the Debian packages {names}");
    if install(&missing)? {
        return Ok(());
    }
    // No package lists yet, or lists that have aged: both show as a failure.
    update()?;
    if install(&missing)? {
        return Ok(());
    }
    Err(Error::new(format!("apt-get could not install {names}")))
}

fn install(packages: &[&str]) -> Result<bool> {
    apt_get(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

/// Fetches the package lists. One repository that cannot be reached is no
/// reason to give up: what is missing shows in the next step.
fn update() -> Result<()> {
    eprintln!("xtask: apt-get update");
    if !apt_get(Command::new("apt-get").args(["update", "-qq"]))? {
        eprintln!("xtask: apt-get update failed; going on with the lists there are");
    }
    Ok(())
}

/// Downloads `package` into `directory` and returns the file.
///
/// The package is not installed, so the host stays as it is.
pub fn download(package: &str, directory: &Path) -> Result<PathBuf> {
    eprintln!("xtask: downloading the Debian package {package} (it is not installed)");
    let fetch = || apt_get(Command::new("apt-get").args(["download", "-qq", package]).current_dir(directory));
    if !fetch()? {
        if !is_root() {
            return Err(Error::new(format!(
                "apt-get download {package} failed; are the package lists there? \
                 fetch them with: sudo apt-get update"
            )));
        }
        update()?;
        if !fetch()? {
            return Err(Error::new(format!("apt-get could not download {package}")));
        }
    }
    let entries = std::fs::read_dir(directory).context(format_args!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry.context("reading the download folder")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    Err(Error::new(format!("apt-get downloaded no .deb file for {package}")))
}

/// The packages that `package` depends on, by name, as apt's lists have it;
/// empty if the lists do not know it.
pub fn dependencies(package: &str) -> Result<Vec<String>> {
    let known = depends(package)?;
    if !known.is_empty() || !is_root() {
        return Ok(known);
    }
    update()?;
    depends(package)
}

fn depends(package: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", package])
        .env("LC_ALL", "C")
        .output()
        .context("apt-cache did not run")?;
    Ok(parse_depends(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_depends(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect()
}

/// Runs apt-get where it never asks, waits for another run of apt, and keeps
/// our standard output clean.
fn apt_get(command: &mut Command) -> Result<bool> {
    let status = command
        .args(["-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0"])
        // Its unprivileged helper may not write to a folder of ours.
        .args(["-o", "APT::Sandbox::User=root"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .context("apt-get did not run")?;
    Ok(status.success())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let installed = parse_installed("ii \tlvm2\t2.03.16-2\nun \tcpio\t\nrc \tfdisk\t2.38\n");
        assert_eq!(installed.len(), 1);
        assert_eq!(installed["lvm2"], "2.03.16-2");
    }

    #[test]
    fn a_meta_package_names_its_kernel() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n";
        assert_eq!(parse_depends(text), ["linux-image-6.1.0-50-cloud-amd64"]);
        assert!(parse_depends("").is_empty());
    }
}
