//! Writes the CustomResourceDefinitions below the folder that is named: what `cargo xtask crds` runs.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("name the folder to write the definitions to")?);
    for (file, text) in carina_k8s::crds::definitions()? {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        std::fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}
