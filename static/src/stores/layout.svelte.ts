import { key, nextActive, restore, type Layout } from '../lib/layout';
import { moved } from '../lib/paths';

function read(project: string): string | null {
  try {
    return localStorage.getItem(key(project));
  } catch {
    return null;
  }
}

export type MobilePane = 'files' | 'code' | 'terminal' | 'preview' | 'run';

/** Which panes and tabs are open; remembered per project in this browser. */
export class LayoutStore {
  files = $state(true);
  bottom = $state(true);
  preview = $state(false);
  tabs = $state<string[]>([]);
  active = $state<string | null>(null);
  /** `output` or a terminal's name. */
  panel = $state('output');
  mobile = $state<MobilePane>('code');
  readonly fresh: boolean;

  constructor(
    readonly project: string,
    remembered = true,
  ) {
    const text = remembered ? read(project) : null;
    this.fresh = text === null;
    const from = restore(text);
    this.files = from.files;
    this.bottom = from.bottom;
    this.preview = from.preview;
    this.tabs = from.tabs;
    this.active = from.active;
    this.panel = from.panel;
  }

  /** Call in an effect: writes what has changed. */
  save(): void {
    const { files, bottom, preview, tabs, active, panel } = this;
    const now: Layout = { files, bottom, preview, tabs, active, panel };
    try {
      localStorage.setItem(key(this.project), JSON.stringify(now));
    } catch {
      // no room or not allowed: not remembered
    }
  }

  open(path: string): void {
    if (!this.tabs.includes(path)) this.tabs = [...this.tabs, path];
    this.active = path;
    this.mobile = 'code';
  }

  close(path: string): void {
    this.active = nextActive(this.tabs, path, this.active);
    this.tabs = this.tabs.filter((t) => t !== path);
  }

  moved(from: string, to: string): void {
    this.tabs = this.tabs.map((t) => moved(t, from, to) ?? t);
    if (this.active) this.active = moved(this.active, from, to) ?? this.active;
  }

  showPanel(name: string): void {
    this.panel = name;
    this.bottom = true;
    this.mobile = name === 'output' ? 'run' : 'terminal';
  }
}
