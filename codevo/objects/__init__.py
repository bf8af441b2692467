"""The bucket as the hub uses it: templates, forks, exports, deletion."""
