//! Kinds of files: which names make a file a part of a program.
#![deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects)]

/// Endings of program files, in lower case, by kind.
const ENDINGS: [&[&str]; 6] = [
    // Sources.
    &[
        "py", "pyi", "pyx", "pxd", "pyw", "rb", "php", "pl", "pm", "lua", "go", "rs", "c", "h", "cc", "cpp", "hpp",
        "java", "kt", "kts", "scala", "groovy", "cs", "fs", "vb", "swift", "ex", "exs", "erl", "clj", "hs", "r", "jl",
        "dart", "js", "mjs", "cjs", "jsx", "ts", "mts", "cts", "tsx", "vue", "svelte", "coffee", "wasm", "graphql",
        "proto", "sql",
    ],
    // Scripts.
    &["sh", "bash", "zsh", "fish", "ksh", "bat", "cmd", "ps1", "psm1", "psd1", "vbs", "awk"],
    // Templates.
    &[
        "html",
        "htm",
        "xhtml",
        "j2",
        "jinja",
        "jinja2",
        "tmpl",
        "tpl",
        "mako",
        "ejs",
        "erb",
        "haml",
        "hbs",
        "handlebars",
        "mustache",
        "pug",
        "jade",
        "twig",
        "liquid",
        "jsp",
        "aspx",
        "cshtml",
        "razor",
    ],
    // Styles.
    &["css", "scss", "sass", "less", "styl"],
    // Libraries and executables.
    &[
        "so", "pyd", "dll", "dylib", "a", "lib", "exe", "com", "msi", "jar", "war", "ear", "class", "pyc", "whl",
        "egg", "node", "beam",
    ],
    // Maps from what a build made to its sources.
    &["map"],
];

/// Lock files, and the files that they are made from, in lower case.
const LOCKS: [&str; 21] = [
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "bun.lockb",
    "pipfile",
    "pipfile.lock",
    "poetry.lock",
    "pdm.lock",
    "uv.lock",
    "pyproject.toml",
    "setup.cfg",
    "gemfile",
    "gemfile.lock",
    "composer.json",
    "composer.lock",
    "cargo.toml",
    "cargo.lock",
    "go.mod",
    "go.sum",
];
/// Programs of build tools, in lower case.
const BUILDS: [&str; 5] = ["makefile", "dockerfile", "procfile", "rakefile", "justfile"];

/// True when a file of this name is a part of a program, whatever it holds.
pub(super) fn is_program_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let requirements = name.starts_with("requirements") && (name.ends_with(".txt") || name.ends_with(".in"));
    if requirements || LOCKS.contains(&name.as_str()) || BUILDS.contains(&name.as_str()) {
        return true;
    }
    // `libx.so.1` is a library, too.
    if name.contains(".so.") {
        return true;
    }
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| ENDINGS.iter().any(|kind| kind.contains(&ending)))
}
