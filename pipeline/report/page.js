document.querySelectorAll('table').forEach(table => {
  table.classList.add('sortable');
  table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') !== 'descending', body = table.tBodies[0];
    const key = row => { const text = row.cells[column]?.textContent ?? '', number = parseFloat(text);
      return isNaN(number) ? text : number; };
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    [...body.rows].map(row => [key(row), row]).sort(([a], [b]) => {
      const order = typeof a === typeof b ? (a > b) - (a < b) : typeof a === 'number' ? 1 : -1;
      return down ? -order : order; }).forEach(([, row]) => body.append(row));
  }));
});
