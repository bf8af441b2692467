/** What of a project's window is remembered in this browser. */
export interface Layout {
  files: boolean;
  bottom: boolean;
  preview: boolean;
  tabs: string[];
  active: string | null;
  /** `output` or a terminal's name. */
  panel: string;
}

export const initial: Layout = { files: true, bottom: true, preview: false, tabs: [], active: null, panel: 'output' };
const MAX_TABS = 30;

export const key = (project: string): string => `codevo:layout:${project}`;

/** Whatever stands in the browser's store, as a layout: what does not fit is replaced. */
export function restore(text: string | null): Layout {
  let found: unknown = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    found = null;
  }
  if (typeof found !== 'object' || found === null) return { ...initial, tabs: [] };
  const from = found as Record<string, unknown>;
  const flag = (name: 'files' | 'bottom' | 'preview'): boolean =>
    typeof from[name] === 'boolean' ? from[name] : initial[name];
  const tabs = Array.isArray(from['tabs'])
    ? [...new Set(from['tabs'].filter((t): t is string => typeof t === 'string' && t !== ''))].slice(0, MAX_TABS)
    : [];
  const active = typeof from['active'] === 'string' && tabs.includes(from['active']) ? from['active'] : (tabs[0] ?? null);
  const panel = typeof from['panel'] === 'string' && from['panel'] ? from['panel'] : initial.panel;
  return { files: flag('files'), bottom: flag('bottom'), preview: flag('preview'), tabs, active, panel };
}

/** The tab to show after `closed` went: its right neighbour, else its left one. */
export function nextActive(tabs: readonly string[], closed: string, active: string | null): string | null {
  if (active !== closed) return active;
  const at = tabs.indexOf(closed);
  return tabs[at + 1] ?? tabs[at - 1] ?? null;
}
