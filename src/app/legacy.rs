//! The profile of the server that the first users run: a Flask application started by `run.py`.

use super::Profile;
use std::path::Path;

pub(super) static PROFILE: Profile = Profile {
    name: "legacy",
    data: &[
        "/config/",
        "/config",
        "/migrations/",
        "/migrations",
        "/translations/",
        "/translations",
        "/ssl/",
        "/ssl",
        "/app_config.json",
        "/app/static/img/avatars/",
        "/app/static/img/avatars",
        "/app/static/strategy_backgrounds/",
        "/app/static/strategy_backgrounds",
    ],
    // Its old updater copied `app/__init__.py` into other packages at each run.
    has_planted_packages: true,
};

/// True when the server lies in `root`: `run.py`, `app/` and `instance/` at the top.
pub(super) fn is_installed(root: &Path) -> bool {
    root.join("run.py").is_file() && root.join("app").is_dir() && root.join("instance").is_dir()
}
