import { encodePath } from '../lib/paths';
import { call, list, send } from './client';
import type { Entry, VersionPage } from './types';

export interface TerminalModel {
  name: string;
  last_activity?: string;
  title?: string;
}

export interface KernelModel {
  id: string;
  name: string;
  execution_state: string;
  last_activity: string;
  connections?: number;
}

/** The routes of one workspace, `/p/{id}/…`. */
export class WorkspaceApi {
  readonly base: string;
  readonly ws: string;

  constructor(readonly id: string) {
    this.base = `/p/${encodeURIComponent(id)}`;
    this.ws = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}${this.base}`;
  }

  contents(path: string): string {
    return `${this.base}/api/contents${path ? `/${encodePath(path)}` : ''}`;
  }

  filesUrl(path: string): string {
    return `${this.base}/files/${encodePath(path)}`;
  }

  stat(path: string): Promise<Entry> {
    return call('GET', `${this.contents(path)}?content=0`);
  }

  async folder(path: string, signal?: AbortSignal): Promise<Entry[]> {
    const found = await call<Entry>('GET', `${this.contents(path)}?type=directory`, undefined, signal);
    return Array.isArray(found.content) ? (found.content as Entry[]) : [];
  }

  async blob(path: string): Promise<Blob> {
    return (await send('GET', this.filesUrl(path))).blob();
  }

  createFile(path: string, content = ''): Promise<Entry> {
    return call('PUT', this.contents(path), { type: 'file', format: 'text', content });
  }

  createFolder(path: string): Promise<Entry> {
    return call('PUT', this.contents(path), { type: 'directory' });
  }

  async upload(path: string, file: Blob): Promise<Entry> {
    const bytes = new Uint8Array(await file.arrayBuffer());
    let binary = '';
    for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
    return call('PUT', this.contents(path), { type: 'file', format: 'base64', content: btoa(binary) });
  }

  rename(path: string, to: string): Promise<Entry> {
    return call('PATCH', this.contents(path), { path: to });
  }

  remove(path: string): Promise<void> {
    return call('DELETE', this.contents(path));
  }

  /** The versions of a file, newest first; those older than the record `before`. */
  history(path: string, before: number | null = null, signal?: AbortSignal): Promise<VersionPage> {
    const query = new URLSearchParams({ limit: '50', ...(before === null ? {} : { before: String(before) }) });
    return call('GET', `${this.base}/api/history/${encodePath(path)}?${query}`, undefined, signal);
  }

  versionUrl(path: string, seq: number): string {
    return `${this.base}/api/history/${encodePath(path)}?seq=${seq}`;
  }

  /** A file's bytes as they were after the record `seq`. */
  async version(path: string, seq: number, signal?: AbortSignal): Promise<Blob> {
    return (await send('GET', this.versionUrl(path, seq), undefined, signal)).blob();
  }

  async terminals(): Promise<TerminalModel[]> {
    return list(await call('GET', `${this.base}/api/terminals`), 'terminals');
  }

  newTerminal(): Promise<TerminalModel> {
    return call('POST', `${this.base}/api/terminals`, {});
  }

  closeTerminal(name: string): Promise<void> {
    return call('DELETE', `${this.base}/api/terminals/${encodeURIComponent(name)}`);
  }

  async kernels(): Promise<KernelModel[]> {
    return list(await call('GET', `${this.base}/api/kernels`), 'kernels');
  }

  newKernel(name: string): Promise<KernelModel> {
    return call('POST', `${this.base}/api/kernels`, { name });
  }

  interrupt(id: string): Promise<void> {
    return call('POST', `${this.base}/api/kernels/${encodeURIComponent(id)}/interrupt`, {});
  }

  restart(id: string): Promise<KernelModel> {
    return call('POST', `${this.base}/api/kernels/${encodeURIComponent(id)}/restart`, {});
  }
}
