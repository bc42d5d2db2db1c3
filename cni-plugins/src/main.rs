//! `bosun-cni`: the CNI plugins in one small program, which does what the name it is called by says.

use std::path::Path;
use std::process::ExitCode;

use cni_plugins::{PLUGINS, skel};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    if let Some((_, plugin)) = PLUGINS.iter().find(|(name, _)| Some(*name) == called) {
        let environment = |key: &str| std::env::var(key).ok();
        return skel::run(*plugin, &environment, &mut std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    match &arguments[..] {
        [_, verb, folder] if verb == "install" => match install(Path::new(folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bosun-cni: cannot install into {folder}: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            let names: Vec<&str> = PLUGINS.iter().map(|(name, _)| *name).collect();
            eprintln!("usage: bosun-cni install DIR\nputs the plugins {} into DIR", names.join(", "));
            ExitCode::FAILURE
        }
    }
}

/// Puts this program under each plugin's name, by rename, so that a runtime never executes half a file.
fn install(folder: &Path) -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    std::fs::create_dir_all(folder)?;
    let first = folder.join(".bosun-cni.new");
    std::fs::copy(&own, &first)?;
    for (name, _) in PLUGINS {
        let link = folder.join(format!(".{name}.new"));
        let _ = std::fs::remove_file(&link);
        std::fs::hard_link(&first, &link)?;
        std::fs::rename(&link, folder.join(name))?;
        // rename(2) does nothing where both names are the same file already.
        let _ = std::fs::remove_file(&link);
    }
    std::fs::remove_file(&first)
}
