//! What is known of Python programs: caches, packages, and which file an import finds first.

use crate::base::path::RelPath;

/// Folders that Python and its tools fill again by themselves.
const CACHES: [&str; 5] = ["__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"];

pub(super) fn is_cache_folder(name: &[u8]) -> bool {
    CACHES.iter().any(|known| known.as_bytes() == name)
}

/// True for the file that makes a folder a package.
pub(super) fn is_package_file(path: &RelPath) -> bool {
    path.name() == "__init__.py"
}

/// True when an import finds `other` before the new module `new`: a package of the same name, or a compiled module.
/// Source: "The import system", Python Language Reference; `importlib._bootstrap_external.FileFinder.find_spec`.
pub(super) fn shadows(other: &RelPath, new: &RelPath) -> bool {
    let name = new.name();
    let Some(module) = name.strip_suffix(".py").filter(|module| *module != "__init__") else { return false };
    let other_name = other.name();
    if is_package_file(other) {
        let Some(package) = other.parent() else { return false };
        return package.name() == module && package.parent() == new.parent();
    }
    let rest = other_name.strip_prefix(module).filter(|_| other.parent() == new.parent());
    rest.is_some_and(|rest| rest.starts_with('.') && (rest.ends_with(".so") || rest.ends_with(".pyd")))
}
