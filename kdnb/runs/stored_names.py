"""Names on disk: of files and folders, and of fields that older versions wrote."""

CHECKPOINT = "checkpoint"
PREVIOUS = "checkpoint.previous"
REPLACED = "replaced"  # the folder, next to runs/, of runs that were trained anew

# Fields that were called otherwise when the first runs were stored. The names and hashes of folders
# still contain these, so that no run is renamed; files of format 1 contain them, too.
STORED_NAMES = {
    "data_hash": "data_id",
    "student_weights_hash": "pretrained",
    "teacher_weights_hash": "teacher_id",
}
RENAMED_KEYS = {old: new for new, old in STORED_NAMES.items()} | {"changes": "overrides"}


def with_current_names(data):
    """JSON data (of config.json or of a weights file's metadata) with the keys of format 2."""
    if isinstance(data, dict):
        return {
            RENAMED_KEYS.get(key, key): with_current_names(value) for key, value in data.items()
        }
    if isinstance(data, list):
        return [with_current_names(value) for value in data]
    return data
